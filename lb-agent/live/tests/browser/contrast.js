// Texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, 1.4.3). Evaluated in the page.
(() => {
  const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  // The browser itself mixes the colors: each is painted over the ones behind it.
  const over = (colors) => {
    paint.clearRect(0, 0, 1, 1);
    for (const color of colors) {
      paint.fillStyle = color;
      paint.fillRect(0, 0, 1, 1);
    }
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (color) => {
    const [red, green, blue] = color.map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ground = (element) => {
    const colors = [];
    for (let at = element; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      colors.unshift(at instanceof SVGElement ? 'transparent' : style.backgroundColor);
    }
    const box = element.closest('svg') && element.parentElement.querySelector('rect');
    if (box) colors.push(getComputedStyle(box).fill);
    return colors;
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    const style = getComputedStyle(element);
    const hidden = !element.checkVisibility() || element.closest('.unseen, .skip, title, noscript, option, .none');
    if (hidden || texts.currentNode.data.trim() === '') continue;
    const behind = ground(element);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const [light, dark] = [luminance(over(behind)), luminance(over([...behind, ink]))].sort((a, b) => b - a);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) found.push(`${contrast.toFixed(2)} ${element.tagName} ${texts.currentNode.data.trim().slice(0, 40)}`);
  }
  return found;
})()

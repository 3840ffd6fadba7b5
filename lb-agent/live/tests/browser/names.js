// Buttons, links and fields without a name for screen readers, and tables without names of their columns. Evaluated in the page.
(() => {
  const found = [];
  for (const element of document.querySelectorAll('a[href], button, input, select, textarea')) {
    const label = element.labels?.[0]?.textContent ?? '';
    const name = element.getAttribute('aria-label') ?? (label.trim() || element.textContent.trim());
    if (!name) found.push(element.outerHTML.slice(0, 80));
  }
  for (const table of document.querySelectorAll('table')) {
    if (!table.querySelector('thead th[scope=col]')) found.push(table.outerHTML.slice(0, 80));
  }
  return found;
})()

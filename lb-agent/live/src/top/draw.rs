//! `TopState` → the screen. Pure: the same state is always the same screen. 80 columns and 24 rows are enough.

use ratatui::Frame;
use ratatui::layout::{Constraint, Flex, Layout};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};

use super::panes;
use super::state::{Overlay, TopState};

/// Keys, as `?` shows them.
const KEYS: [(&str, &str); 11] = [
    ("Tab, 1 2 3", "next pane, or this one"),
    ("j k, arrows", "next and previous row"),
    ("g G", "first and last row"),
    ("Enter", "explain the flow; about the Service or the reason"),
    ("Esc", "back; remove the filter"),
    ("/", "filter all panes"),
    ("s", "order of Services: flows, change, trouble, name"),
    ("Space", "pause and continue flows"),
    ("?", "these keys"),
    ("q, Ctrl-C", "quit"),
    ("lbctl ui", "the same and more in a browser"),
];

/// Bars of the footer are this wide.
const BAR: usize = 5;

/// Draws the screen.
pub fn draw(frame: &mut Frame<'_>, state: &TopState) {
    let [header, upper, lower, footer] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [left, right] = Layout::horizontal([Constraint::Fill(1); 2]).areas(upper);
    frame.render_widget(Paragraph::new(head(state)), header);
    panes::services(frame, left, state);
    panes::drops(frame, right, state);
    panes::flows(frame, lower, state);
    frame.render_widget(Paragraph::new(foot(state, footer.width)), footer);
    match &state.overlay {
        None => {}
        Some(Overlay::Help) => {
            let lines = KEYS.map(|(key, meaning)| Line::from(format!(" {key:12} {meaning}")));
            over(frame, state, "Keys", lines.to_vec(), 0);
        }
        Some(Overlay::Text { title, lines, scrolled }) => {
            let lines = lines.iter().map(|line| marked(state, line)).collect();
            over(frame, state, title, lines, *scrolled);
        }
    }
}

/// The first two lines: how it is, and how much happens.
fn head(state: &TopState) -> Vec<Line<'_>> {
    let theme = state.theme;
    let Some(now) = &state.now else {
        let text = state.trouble.as_deref().unwrap_or("asking lbctl ...");
        return vec![Line::from(vec![Span::styled("lb top  ", theme.head()), Span::raw(text)])];
    };
    let total = now.nodes.len();
    let trouble = state.trouble.as_ref().or(now.remarks.first());
    let up = now.nodes.iter().filter(|node| node.verdict != "UNKNOWN").count();
    let ill: Vec<_> = now.nodes.iter().filter(|node| node.verdict != "OK").collect();
    let verdict = match ill.as_slice() {
        [] if total == 0 => {
            let why = trouble.map_or(String::new(), |trouble| format!(": {trouble}"));
            Span::styled(format!("NO ANSWER{why}"), theme.bad())
        }
        [] => Span::styled("OK", theme.good()),
        [node, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" (+{})", rest.len()) };
            let name = if total > 1 { format!("{}: ", node.node) } else { String::new() };
            Span::styled(format!("{} {name}{}{more}", node.verdict, node.because), theme.bad())
        }
    };
    let place = match (state.context.as_str(), now.nodes.as_slice()) {
        ("", [node]) if !node.node.is_empty() => format!("node {}", node.node),
        ("", _) => "this node".to_owned(),
        (context, _) => context.to_owned(),
    };
    let issues = match now.issues {
        0 => Span::styled("no issues", theme.dim()),
        n => Span::styled(format!("{n} issue{}", if n == 1 { "" } else { "s" }), theme.warning()),
    };
    let gap = || Span::raw("  ");
    let first = vec![
        Span::styled("lb top", theme.head()),
        gap(),
        Span::raw(place),
        gap(),
        Span::raw(format!("nodes {up}/{total}")),
        gap(),
        issues,
        gap(),
        verdict,
    ];
    let rate = |names: &'static [&'static str]| {
        let rate = state
            .rate(|sample| Some(names.iter().filter_map(|name| sample.counters.get(*name)).sum()));
        panes::rate_text(rate)
    };
    let dropped = state.rate(|sample| Some(sample.drops.iter().map(|drop| drop.count).sum()));
    let mut second = vec![
        Span::styled(now.time.clone(), theme.dim()),
        Span::raw(format!(
            "  new flows/s: Pods {}, Services {}, outside {}  ",
            rate(&["flow_plain"]),
            rate(&["flow_service", "socket_translated"]),
            rate(&["flow_external", "flow_masqueraded", "flow_to_host"]),
        )),
        Span::styled(
            format!("drops/s {}", panes::rate_text(dropped)),
            if dropped.is_some_and(|rate| rate > 0.0) { theme.bad() } else { theme.dim() },
        ),
    ];
    if let Some(trouble) = trouble.filter(|_| total > 0) {
        second.push(Span::styled(format!("  {trouble}"), theme.warning()));
    }
    vec![Line::from(first), Line::from(second)]
}

/// The last line: the filter that is typed, or how full the maps are and the keys.
fn foot(state: &TopState, width: u16) -> Line<'_> {
    let theme = state.theme;
    if state.typing {
        return Line::from(vec![
            Span::styled("filter: ", theme.head()),
            Span::raw(format!("{}_", state.filter)),
            Span::styled("  Enter keeps it, Esc removes it", theme.dim()),
        ]);
    }
    let keys = match state.filter.as_str() {
        "" => "? keys  / filter  q quit".to_owned(),
        filter => format!("filter: {filter} (Esc)  ? keys"),
    };
    let mut spans = Vec::new();
    let mut left = usize::from(width).saturating_sub(keys.len() + 1);
    for map in state.now.iter().flat_map(|sample| &sample.maps) {
        let permille = map.permille.unwrap_or_default().min(1000);
        let filled = (usize::try_from(permille).unwrap_or(0) * BAR + 500) / 1000;
        let bar: String = "#".repeat(filled) + &"-".repeat(BAR - filled);
        let text = format!("{} [{bar}] {}%  ", map.map, permille / 10);
        if text.len() > left {
            break;
        }
        left -= text.len();
        let style = match permille {
            0..700 => theme.dim(),
            700..900 => theme.warning(),
            _ => theme.bad(),
        };
        spans.push(Span::styled(text, style));
    }
    spans.push(Span::raw(" ".repeat(left + 1)));
    spans.push(Span::styled(keys, theme.dim()));
    Line::from(spans)
}

/// A line of an explanation: its mark has a color.
fn marked<'a>(state: &TopState, line: &'a str) -> Line<'a> {
    let theme = state.theme;
    let is = |words: &[&str]| words.iter().any(|word| line.trim_start().starts_with(word));
    if is(&["STOP"]) {
        Line::styled(line, theme.bad())
    } else if is(&["DELIVERED", "ok"]) {
        Line::styled(line, theme.good())
    } else if is(&["CANNOT TELL", "?", "issue:"]) {
        Line::styled(line, theme.warning())
    } else {
        Line::raw(line)
    }
}

/// Draws a box with lines over the middle of the screen.
fn over(
    frame: &mut Frame<'_>,
    state: &TopState,
    title: &str,
    lines: Vec<Line<'_>>,
    scrolled: usize,
) {
    let area = frame.area();
    let width = area.width.saturating_sub(6).min(110);
    let wrapped: usize = lines
        .iter()
        .map(|line| line.width().div_ceil(usize::from(width.saturating_sub(2).max(1))).max(1))
        .sum();
    let height = u16::try_from(wrapped + 2).unwrap_or(u16::MAX).min(area.height.saturating_sub(2));
    let [middle] = Layout::vertical([Constraint::Length(height)]).flex(Flex::Center).areas(area);
    let [middle] = Layout::horizontal([Constraint::Length(width)]).flex(Flex::Center).areas(middle);
    let block = Block::bordered()
        .title(Span::styled(format!(" {title} "), state.theme.head()))
        .title_bottom(Span::styled(" Esc closes, j k scroll ", state.theme.dim()));
    let scrolled = u16::try_from(scrolled).unwrap_or(u16::MAX);
    frame.render_widget(Clear, middle);
    let text = Paragraph::new(lines).block(block).wrap(Wrap { trim: false }).scroll((scrolled, 0));
    frame.render_widget(text, middle);
}

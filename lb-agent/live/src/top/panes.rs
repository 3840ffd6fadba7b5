//! The three panes: Services, reasons of drops, flows.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::Style;
use ratatui::text::Span;
use ratatui::widgets::{Block, Cell, Row, Table};

use super::sample::{DropCount, ServiceLoad};
use super::state::{Pane, TopFlow, TopState};

/// A number per second, short: `12`, `0.4`, `+3`, or `-` while it is not known.
pub(super) fn rate_text(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate.abs() >= 10_000.0 => format!("{:.0}k", rate / 1000.0),
        Some(rate) if rate.abs() >= 10.0 => format!("{rate:.0}"),
        Some(0.0) => "0".to_owned(),
        Some(rate) => format!("{rate:.1}"),
    }
}

/// Services by live flows.
pub(super) fn services(frame: &mut Frame<'_>, area: Rect, state: &TopState) {
    let theme = state.theme;
    let all = state.services();
    let title = format!(" 1 Services {} ({}) ", state.order.name(), all.len());
    let row = |service: &&ServiceLoad| {
        let is_well = service.ready > 0 && service.ready == service.endpoints;
        let ready = match (is_well, service.ready) {
            (true, _) => Style::new(),
            (false, 0) => theme.bad(),
            (false, _) => theme.warning(),
        };
        let mark = if service.issues.is_empty() { ' ' } else { '!' };
        let change = state.service_rate(service);
        let change = match change {
            Some(rate) if rate > 0.0 => format!("+{}", rate_text(Some(rate))),
            other => rate_text(other),
        };
        Row::new([
            Cell::from(format!("{mark}{}", service.full_name())),
            Cell::from(format!("{:>5}", format!("{}/{}", service.ready, service.endpoints)))
                .style(ready),
            Cell::from(format!("{:>6}", service.flows)),
            Cell::from(format!("{change:>6}")),
        ])
    };
    let rows: Vec<Row<'_>> = all.iter().map(row).collect();
    let widths =
        [Constraint::Fill(1), Constraint::Length(5), Constraint::Length(6), Constraint::Length(6)];
    let names = [" SERVICE", "READY", " FLOWS", "   ±/s"];
    table(frame, area, state, (Pane::Services, title), names, widths, rows);
}

/// Reasons of drops by packets per second.
pub(super) fn drops(frame: &mut Frame<'_>, area: Rect, state: &TopState) {
    let theme = state.theme;
    let all = state.drops();
    let row = |drop: &&DropCount| {
        let rate = state.drop_rate(drop);
        let style = if rate.is_some_and(|rate| rate > 0.0) { theme.bad() } else { Style::new() };
        Row::new([
            Cell::from(drop.reason.clone()).style(style),
            Cell::from(if drop.direction == "ingress" { "in" } else { "out" }),
            Cell::from(format!("{:>6}", rate_text(rate))).style(style),
            Cell::from(format!("{:>8}", drop.count)),
        ])
    };
    let rows: Vec<Row<'_>> = all.iter().map(row).collect();
    let widths =
        [Constraint::Fill(1), Constraint::Length(3), Constraint::Length(6), Constraint::Length(8)];
    let names = ["REASON", "DIR", "    /s", "   TOTAL"];
    table(
        frame,
        area,
        state,
        (Pane::Drops, format!(" 2 Drops ({}) ", all.len())),
        names,
        widths,
        rows,
    );
}

/// Flows, the newest first.
pub(super) fn flows(frame: &mut Frame<'_>, area: Rect, state: &TopState) {
    let theme = state.theme;
    let all = state.flow_lines();
    let mut title = format!(" 3 Flows ({}", all.len());
    if state.paused {
        title.push_str(&format!(", paused, {} wait", state.waiting.len()));
    }
    title.push_str(") ");
    let row = |flow: &&TopFlow| {
        let style = match flow.verdict.as_str() {
            "dropped" => theme.bad(),
            "would-deny" | "would-allow" => theme.warning(),
            _ => Style::new(),
        };
        let clock = flow.time.split_once('T').map_or(&*flow.time, |(_, clock)| clock);
        let clock = clock.split_once('.').map_or(clock, |(seconds, _)| seconds);
        Row::new([
            Cell::from(clock.to_owned()),
            Cell::from(flow.verdict.clone()).style(style),
            // The client's port is a different one for each flow.
            Cell::from(flow.src.host()),
            Cell::from(flow.dst.word()),
            Cell::from(flow.cause()),
        ])
    };
    let rows: Vec<Row<'_>> = all.iter().map(row).collect();
    let widths = [
        Constraint::Length(8),
        Constraint::Length(11),
        Constraint::Fill(3),
        Constraint::Fill(3),
        Constraint::Fill(3),
    ];
    let names = ["TIME", "VERDICT", "FROM", "TO", "BY"];
    table(frame, area, state, (Pane::Flows, title), names, widths, rows);
}

/// Draws a pane with the rows that fit.
fn table<const N: usize>(
    frame: &mut Frame<'_>,
    area: Rect,
    state: &TopState,
    (pane, title): (Pane, String),
    names: [&'static str; N],
    widths: [Constraint; N],
    rows: Vec<Row<'_>>,
) {
    let selected = state.selected_in(pane);
    let (first, count) = window(area, selected);
    let shown = rows.into_iter().enumerate().skip(first).take(count).map(|(index, row)| {
        if index == selected && state.pane == pane {
            row.style(state.theme.selected())
        } else {
            row
        }
    });
    let table = Table::new(shown, widths)
        .header(Row::new(names).style(state.theme.dim()))
        .block(block(state, pane, title))
        .column_spacing(1);
    frame.render_widget(table, area);
}

/// The block of a pane; that of the keys is marked.
fn block(state: &TopState, pane: Pane, title: String) -> Block<'static> {
    let style = if state.pane == pane { state.theme.head() } else { state.theme.dim() };
    Block::bordered().border_style(style).title(Span::styled(title, state.theme.head()))
}

/// The rows that fit, so that the selected one is among them: the first and the number.
fn window(area: Rect, selected: usize) -> (usize, usize) {
    // The border and the names of the columns.
    let height = usize::from(area.height.saturating_sub(3));
    ((selected + 1).saturating_sub(height), height)
}

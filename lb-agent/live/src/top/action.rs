//! A key → what it does to the state, and what has to be asked then. Pure.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::sample::ServiceLoad;
use super::state::{Overlay, Pane, TopState};

/// What a key asks for that the state cannot do by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The program ends.
    Quit,
    /// The path of a flow is shown.
    Explain([String; 2]),
    /// The screen is drawn again.
    Draw,
}

/// Applies a key.
pub fn press(state: &mut TopState, key: KeyEvent) -> Effect {
    if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
        return Effect::Quit;
    }
    if state.typing {
        return type_into(state, key.code);
    }
    if state.overlay.is_some() {
        return over(state, key.code);
    }
    match key.code {
        KeyCode::Char('q') => return Effect::Quit,
        KeyCode::Char('?') => state.overlay = Some(Overlay::Help),
        KeyCode::Char('/') => state.typing = true,
        KeyCode::Char('j') | KeyCode::Down => state.select(1),
        KeyCode::Char('k') | KeyCode::Up => state.select(-1),
        KeyCode::PageDown => state.select(10),
        KeyCode::PageUp => state.select(-10),
        KeyCode::Char('g') | KeyCode::Home => state.select(isize::MIN),
        KeyCode::Char('G') | KeyCode::End => state.select(isize::MAX),
        KeyCode::Tab => state.pane = state.pane.next(),
        KeyCode::BackTab => state.pane = state.pane.next().next(),
        KeyCode::Char('1') => state.pane = Pane::Services,
        KeyCode::Char('2') => state.pane = Pane::Drops,
        KeyCode::Char('3') => state.pane = Pane::Flows,
        KeyCode::Char('s') => state.order = state.order.next(),
        KeyCode::Char(' ') => pause(state),
        KeyCode::Enter => return open(state),
        KeyCode::Esc => state.filter.clear(),
        _ => {}
    }
    state.clamp();
    Effect::Draw
}

fn type_into(state: &mut TopState, key: KeyCode) -> Effect {
    match key {
        KeyCode::Enter => state.typing = false,
        KeyCode::Esc => {
            state.typing = false;
            state.filter.clear();
        }
        KeyCode::Backspace => drop(state.filter.pop()),
        KeyCode::Char(character) => state.filter.push(character),
        _ => {}
    }
    state.clamp();
    Effect::Draw
}

fn over(state: &mut TopState, key: KeyCode) -> Effect {
    let mut closes = false;
    match (&mut state.overlay, key) {
        (_, KeyCode::Esc | KeyCode::Char('q' | '?') | KeyCode::Enter) => closes = true,
        (Some(Overlay::Text { lines, scrolled, .. }), KeyCode::Char('j') | KeyCode::Down) => {
            *scrolled = (*scrolled + 1).min(lines.len().saturating_sub(1));
        }
        (Some(Overlay::Text { scrolled, .. }), KeyCode::Char('k') | KeyCode::Up) => {
            *scrolled = scrolled.saturating_sub(1);
        }
        _ => {}
    }
    if closes {
        state.overlay = None;
    }
    Effect::Draw
}

fn pause(state: &mut TopState) {
    state.paused = !state.paused;
    if !state.paused {
        for flow in std::mem::take(&mut state.waiting) {
            state.saw(flow);
        }
    }
}

/// Opens the selected row: a flow is explained, a Service and a reason say what is known, and what to do.
fn open(state: &mut TopState) -> Effect {
    let row = state.selected_in(state.pane);
    match state.pane {
        Pane::Services => {
            let overlay = state.services().get(row).map(|service| about(service));
            state.overlay = overlay;
            Effect::Draw
        }
        Pane::Flows => {
            let ends = state.flow_lines().get(row).map(|flow| flow.ends());
            ends.map_or(Effect::Draw, Effect::Explain)
        }
        Pane::Drops => {
            let overlay = state.drops().get(row).map(|drop| Overlay::Text {
                title: format!("{} ({}), {} packets", drop.reason, drop.direction, drop.count),
                lines: vec![
                    format!("last example: {}", drop.example),
                    format!("what to do: {}", drop.what_to_do),
                ],
                scrolled: 0,
            });
            state.overlay = overlay;
            Effect::Draw
        }
    }
}

fn about(service: &ServiceLoad) -> Overlay {
    let ServiceLoad { ready, endpoints, flows, r#type, frontends, issues, .. } = service;
    let mut lines = vec![
        format!("type: {type}"),
        format!("frontends: {}", frontends.join(" ")),
        format!("endpoints: {ready} ready of {endpoints}"),
        format!("live flows: {flows}"),
    ];
    lines.extend(issues.iter().map(|issue| format!("issue: {issue}")));
    lines.push(format!("next: lbctl explain NAMESPACE/POD {}", service.target()));
    Overlay::Text { title: service.full_name(), lines, scrolled: 0 }
}

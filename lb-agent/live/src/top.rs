//! `lbctl top`: one screen that follows a node or a cluster, for a terminal.
//!
//! ```text
//! lbctl -o json ──► samples ──┐
//! lbctl flows -f ──► flows ───┼──► TopState ──► draw(&TopState)
//! keys ──► actions ───────────┘
//! ```
//! `TopState` and what it is drawn as are pure; commands, keys and the clock are in `follow`.

pub mod action;
pub mod draw;
mod follow;
mod panes;
pub mod sample;
pub mod state;
pub mod theme;

use std::io::{IsTerminal as _, Write};
use std::time::Duration;

use anyhow::{Result, bail};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use crate::lbctl::Lbctl;
use state::TopState;
use theme::Theme;

/// Flags of `top`.
#[derive(Clone, Debug, clap::Args)]
pub struct TopArgs {
    /// Seconds between two samples [default: 2; with --once half a second]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600))]
    pub interval: Option<u64>,
    /// Print the screen once as text, for a ticket; needs no terminal. Rates are those between two samples
    #[arg(long)]
    pub once: bool,
}

/// Time between two samples.
const INTERVAL: Duration = Duration::from_secs(2);
/// The same for `--once`, where a user waits for it.
const BRIEF: Duration = Duration::from_millis(500);

/// Columns and rows of `--once`, unless there is a terminal.
const PAPER: (u16, u16) = (120, 40);

/// Shows the screen until the user quits, or prints it once. `context` names the cluster; empty = this node.
///
/// # Errors
/// When there is no terminal, lbctl cannot be run, or the screen cannot be written.
pub fn run(args: &TopArgs, context: &str, lbctl: Lbctl, out: &mut dyn Write) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let usual = if args.once { BRIEF } else { INTERVAL };
    let interval = args.interval.map_or(usual, Duration::from_secs);
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let state = TopState::new(context.to_owned(), Theme::new(!no_color));
    if args.once {
        let state = runtime.block_on(follow::once(&lbctl, interval, state))?;
        return print(&state, out);
    }
    if !std::io::stdout().is_terminal() {
        bail!("top needs a terminal: use `top --once` for a text");
    }
    let mut terminal = ratatui::try_init()?;
    let result = runtime.block_on(follow::run(&lbctl, interval, state, &mut terminal));
    ratatui::try_restore()?;
    // A thread still waits for a key.
    runtime.shutdown_background();
    result
}

/// Prints the screen as text.
fn print(state: &TopState, out: &mut dyn Write) -> Result<()> {
    let size = crossterm::terminal::size().unwrap_or(PAPER);
    let (width, height) = if std::io::stdout().is_terminal() { size } else { PAPER };
    Ok(out.write_all(text(state, width, height)?.as_bytes())?)
}

/// Returns the screen as lines without trailing spaces.
///
/// # Errors
/// When it cannot be drawn.
pub fn text(state: &TopState, width: u16, height: u16) -> Result<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height))?;
    terminal.draw(|frame| draw::draw(frame, state))?;
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..height {
        let cells = (0..width).filter_map(|x| buffer.cell((x, y)));
        let line: String = cells.map(ratatui::buffer::Cell::symbol).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests;

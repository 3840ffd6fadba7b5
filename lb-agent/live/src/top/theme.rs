//! Meanings → colors. Without colors (`NO_COLOR`, <https://no-color.org>), bold and reversed text remain.

use ratatui::style::{Color, Modifier, Style};

/// Whether there are colors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    colors: bool,
}

impl Theme {
    /// Returns the theme with or without colors.
    pub const fn new(colors: bool) -> Self {
        Self { colors }
    }

    /// What is as it should be.
    pub fn good(self) -> Style {
        self.color(Color::Green)
    }

    /// What needs attention.
    pub fn warning(self) -> Style {
        self.color(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    /// What is denied or broken.
    pub fn bad(self) -> Style {
        self.color(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// What is of less interest.
    pub fn dim(self) -> Style {
        self.color(Color::DarkGray)
    }

    /// Titles and column names.
    pub fn head(self) -> Style {
        self.color(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    /// The selected row of the pane that has the keys.
    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    fn color(self, color: Color) -> Style {
        if self.colors { Style::new().fg(color) } else { Style::new() }
    }
}

//! Text that others wrote, for terminals and logs: without control characters, which would clear a screen or add lines
//! of their own, and without characters that are not seen or turn the direction of what follows.
#![forbid(unsafe_code)]

use std::fmt::{self, Write as _};
use std::io;

/// Shows what it holds on one line, and nothing but what can be seen.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<T>(pub T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping { to: f, kept: None }, "{}", self.0)
    }
}

/// Passes text on, escaped but for one character.
struct Escaping<'a, W> {
    to: &'a mut W,
    kept: Option<char>,
}

impl<W: fmt::Write> fmt::Write for Escaping<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        let harms = |c: char| is_unseen(c) && Some(c) != self.kept;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| harms(*c)) {
            let (before, after) = rest.split_at(at);
            self.to.write_str(before)?;
            match c {
                '\n' => self.to.write_str("\\n")?,
                '\r' => self.to.write_str("\\r")?,
                '\t' => self.to.write_str("\\t")?,
                c if c.is_ascii() => write!(self.to, "\\x{:02x}", u32::from(c))?,
                c => write!(self.to, "\\u{{{:x}}}", u32::from(c))?,
            }
            rest = after.get(c.len_utf8()..).unwrap_or_default();
        }
        self.to.write_str(rest)
    }
}

/// Whether a character is a control (C0, DEL, C1), ends a line, has no width, or turns the direction of text.
const fn is_unseen(c: char) -> bool {
    matches!(
        c,
        '\0'..='\x1f'
            | '\x7f'..='\u{9f}'
            | '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// A log: each write is a line, and stays one.
#[derive(Debug)]
pub struct Lines<W> {
    to: W,
    colour: bool,
}

impl<W> Lines<W> {
    /// With `colour`, the writer uses escape sequences itself.
    pub const fn new(to: W, colour: bool) -> Self {
        Self { to, colour }
    }
}

impl<W: io::Write> io::Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let (line, end) = text.strip_suffix('\n').map_or((&*text, ""), |line| (line, "\n"));
        let mut escaped = String::with_capacity(text.len());
        // Writing to a String does not fail.
        let kept = self.colour.then_some('\x1b');
        Escaping { to: &mut escaped, kept }.write_str(line).map_err(io::Error::other)?;
        escaped.push_str(end);
        self.to.write_all(escaped.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::{Escaped, Lines};

    #[test]
    fn what_is_not_seen_is_named() {
        for (text, want) in [
            ("web, 日本語 ✓ é", "web, 日本語 ✓ é"),
            ("\x1b[2J\x07", "\\x1b[2J\\x07"),
            ("a\nOK\r\tb\0", "a\\nOK\\r\\tb\\x00"),
            ("\u{9b}2J\x7f", "\\u{9b}2J\\x7f"),
            ("\u{202e}gnp\u{2066}\u{200b}\u{feff}", "\\u{202e}gnp\\u{2066}\\u{200b}\\u{feff}"),
            ("\u{2028}\u{85}", "\\u{2028}\\u{85}"),
            ("back\\slash", "back\\slash"),
        ] {
            assert_eq!(Escaped(text).to_string(), want, "{text:?}");
        }
        assert_eq!(Escaped(format_args!("{}-{}", '\x1b', 7)).to_string(), "\\x1b-7");
    }

    #[test]
    fn a_line_of_a_log_stays_one() {
        let written = |colour: bool, line: &str| {
            let mut log = Vec::new();
            Lines::new(&mut log, colour).write_all(line.as_bytes()).unwrap();
            String::from_utf8(log).unwrap()
        };
        assert_eq!(written(false, "a\nINFO forged \x1b[2J\n"), "a\\nINFO forged \\x1b[2J\n");
        assert_eq!(written(true, "\x1b[32mINFO\x1b[0m a\nb\n"), "\x1b[32mINFO\x1b[0m a\\nb\n");
    }
}

//! The words after a task's name: options are taken out one by one, and what is left over is an error, so that a
//! mistyped option never runs the default.

use anyhow::{Result, bail};

/// The words not yet taken.
pub(crate) struct Args {
    words: Vec<String>,
}

impl Args {
    /// All words of a task.
    pub(crate) fn new(words: &[String]) -> Self {
        Self { words: words.to_vec() }
    }

    /// Takes `--name`; whether it was there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let before = self.words.len();
        self.words.retain(|word| word != name);
        self.words.len() < before
    }

    /// Takes `--name VALUE` or `--name=VALUE`; the last one wins.
    ///
    /// # Errors
    /// When the value is missing.
    pub(crate) fn value(&mut self, name: &str) -> Result<Option<String>> {
        Ok(self.values(name)?.pop())
    }

    /// Takes every `--name VALUE`, in order.
    ///
    /// # Errors
    /// When a value is missing.
    pub(crate) fn values(&mut self, name: &str) -> Result<Vec<String>> {
        let (mut found, mut rest) = (Vec::new(), Vec::new());
        let mut words = std::mem::take(&mut self.words).into_iter();
        while let Some(word) = words.next() {
            if word == name {
                match words.next() {
                    Some(value) => found.push(value),
                    None => bail!("{name} requires a value"),
                }
            } else if let Some(value) =
                word.strip_prefix(name).and_then(|tail| tail.strip_prefix('='))
            {
                found.push(value.to_owned());
            } else {
                rest.push(word);
            }
        }
        self.words = rest;
        Ok(found)
    }

    /// Takes the first word that is not an option.
    pub(crate) fn positional(&mut self) -> Option<String> {
        let at = self.words.iter().position(|word| !word.starts_with('-'))?;
        Some(self.words.remove(at))
    }

    /// Refuses what is left.
    ///
    /// # Errors
    /// When a word was not taken; names it and the usage.
    pub(crate) fn finish(self, usage: &str) -> Result<()> {
        match self.words.first() {
            Some(word) => bail!("unknown argument {word:?}\nusage: cargo xtask {usage}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Args;

    fn args(line: &str) -> Args {
        Args::new(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_in_both_forms_and_any_order() {
        let mut a = args("--wrap=x word --keep --wrap y");
        assert!(a.flag("--keep"));
        assert!(!a.flag("--keep"));
        assert_eq!(a.values("--wrap").unwrap(), ["x", "y"]);
        assert_eq!(a.positional().as_deref(), Some("word"));
        a.finish("t").unwrap();
    }

    #[test]
    fn a_leftover_or_a_missing_value_is_an_error() {
        assert!(args("--bles").finish("t").is_err());
        assert!(args("--wrap").value("--wrap").is_err());
    }
}

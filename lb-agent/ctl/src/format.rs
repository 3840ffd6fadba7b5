//! `-o`: the word → how to print.

use std::ffi::OsStr;

use clap::ValueEnum as _;
use clap::builder::{EnumValueParser, PossibleValue, StringValueParser, TypedValueParser};

use crate::jsonpath::Template;

/// What begins `-o` with a template.
const JSONPATH: &str = "jsonpath";

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, clap::ValueEnum)]
pub enum Format {
    /// Columns.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// One JSON object.
    Json,
    /// One YAML document.
    Yaml,
    /// Only the names, one a line.
    Name,
    /// Rows with their cells and JSON, for a laptop that merges them.
    #[value(hide = true)]
    Rows,
    /// What a template selects from the JSON object. It lives as long as the process, which has one command line.
    #[value(skip)]
    JsonPath(&'static Template),
}

impl Format {
    /// Whether each object is printed as JSON, whole or in parts.
    pub const fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::JsonPath(_))
    }
}

/// Reads the word behind `-o`.
#[derive(Clone, Copy, Debug)]
pub struct FormatParser;

impl TypedValueParser for FormatParser {
    type Value = Format;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Format, clap::Error> {
        StringValueParser::new().try_map(format).parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let of_template = PossibleValue::new("jsonpath=TEMPLATE")
            .help("What a template selects from the JSON object, in kubectl's syntax");
        let words: Vec<PossibleValue> =
            EnumValueParser::<Format>::new().possible_values()?.chain([of_template]).collect();
        Some(Box::new(words.into_iter()))
    }
}

fn format(word: String) -> Result<Format, String> {
    let Some(rest) = word.strip_prefix(JSONPATH) else {
        let wrong = |_| "use table, wide, json, yaml, name or jsonpath=TEMPLATE".to_owned();
        return Format::from_str(&word, false).map_err(wrong);
    };
    let source = rest.strip_prefix('=');
    let source = source.ok_or("a template is missing: -o jsonpath='{.items[*].name}'")?;
    let template = Template::parse(source).map_err(|error| error.to_string())?;
    Ok(Format::JsonPath(Box::leak(Box::new(template))))
}

#[cfg(test)]
mod tests {
    use crate::Command;
    use crate::columns::Format;
    use crate::command_line::parse;

    fn format(word: &str) -> Result<Format, String> {
        let words = ["lbctl", "services", "-o", word].map(Into::into);
        match parse(words).map_err(|error| error.to_string())?.command {
            Command::Services(args) => Ok(args.style.output),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn a_template_is_read_with_the_command_line_and_a_mistake_in_it_is_named() {
        assert_eq!(format("wide"), Ok(Format::Wide));
        assert!(matches!(format("jsonpath={.items[*].name}"), Ok(Format::JsonPath(_))));
        let cases = [
            (
                "jsonpath={.items[}",
                "invalid value 'jsonpath={.items[}' for '--output <FORMAT>': {.items[} is not a JSONPath expression: ",
            ),
            ("jsonpath", "a template is missing: -o jsonpath='{.items[*].name}'"),
            ("jsonpath-file", "a template is missing"),
            ("jsn", "use table, wide, json, yaml, name or jsonpath=TEMPLATE"),
        ];
        for (word, want) in cases {
            let error = format(word).unwrap_err();
            assert!(error.contains(want), "{word}: {error}");
        }
    }
}

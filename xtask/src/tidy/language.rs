//! Phrases that documents and manifests must not use, because they slow down every reader, and where a text uses them.

use super::Source;

/// A refused phrase, and what to write instead.
pub(super) struct Phrase {
    /// Lower case, separated by single spaces. `*` stands for any one word.
    words: &'static str,
    /// What a reader of Kubernetes' or Rust's documentation expects.
    pub(super) instead: &'static str,
}

const fn phrase(words: &'static str, instead: &'static str) -> Phrase {
    Phrase { words, instead }
}

/// The list. A phrase belongs here if nearly every use is a mistake.
const REFUSED: [Phrase; 44] = [
    phrase("somebody", "name who it is: client, Pod, node, caller"),
    phrase("nobody", "name who it is: no client, no Pod, no caller"),
    phrase("everybody", "name who it is: all clients, every namespace"),
    phrase("anybody", "name who it is: any client, any Pod"),
    phrase("anew", "again"),
    phrase("lately", "recently, or a time"),
    phrase("of late", "recently, or a time"),
    phrase("whom", "who, or turn the sentence around"),
    phrase("whence", "where … from"),
    phrase("thereof", "its, of it"),
    phrase("wherein", "in which"),
    phrase("for ever", "forever, permanently, without limit"),
    phrase("told of", "reported, known"),
    phrase("tell of", "report, show"),
    phrase("tells of", "reports, shows"),
    phrase("telling of", "reporting, showing"),
    phrase("told by", "identified by"),
    phrase("told apart", "distinguished"),
    phrase("tell apart", "distinguish"),
    phrase("tells apart", "distinguishes"),
    phrase("told from", "distinguished from"),
    phrase("comes of", "results from"),
    phrase("come of", "result from"),
    phrase("came of", "resulted from"),
    phrase("becomes of", "happens to"),
    phrase("become of", "happen to"),
    phrase("became of", "happened to"),
    phrase("the way of", "say which path or method"),
    phrase("whose affair", "say which component is responsible"),
    phrase("one's affair", "say which component is responsible"),
    phrase("not to be had", "not available"),
    phrase("to be had", "available"),
    phrase("what few have", "name it"),
    phrase("what few * have", "name it"),
    phrase("so many", "say how many, or: the number of"),
    phrase("as of", "since, like, as with"),
    phrase("as long as you like", "without a limit"),
    phrase("all the same", "anyway, nevertheless"),
    phrase("out of namespaces", "made from namespaces, built from namespaces"),
    phrase("is no *", NOT_A),
    phrase("are no *", NOT_A),
    phrase("was no *", NOT_A),
    phrase("were no *", NOT_A),
    phrase("be no *", NOT_A),
];

const NOT_A: &str = "is not a …, are not …";

/// Words before `is no`, and after it, that make it ordinary English: `there is no room`, `is no longer`.
const BEFORE: [&str; 2] = ["there", "here"];
const AFTER: [&str; 12] = [
    "longer", "more", "less", "fewer", "larger", "smaller", "older", "newer", "slower", "faster",
    "better", "worse",
];

/// Where the comments and strings of source files are checked.
const CHECKED: [&str; 4] = ["lb-agent/", "lb-common/", "lb-ebpf/", "xtask/"];

/// Checks the prose of Markdown documents, but not the code in them, the comments of manifests, and the comments and strings
/// of source files.
pub(super) fn check(documents: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for document in documents {
        let Source { path, text } = document;
        let text = match path.rsplit('.').next() {
            Some("yaml") => comments(text),
            // The list itself is there.
            Some("rs") if path.starts_with("xtask/src/tidy/") => continue,
            Some("rs") if CHECKED.iter().any(|checked| path.starts_with(checked)) => spoken(text),
            Some("rs") => continue,
            _ => prose(text),
        };
        for (line, phrase) in refused(&text) {
            complaints.push(format!(
                "{}: line {line}: \"{}\": better: {}",
                document.path, phrase.words, phrase.instead
            ));
        }
    }
    complaints
}

/// Returns each refused phrase in a text with its line, counted from 1. A phrase can continue on the next line, but not
/// across punctuation.
pub(super) fn refused(text: &str) -> Vec<(usize, &'static Phrase)> {
    let words = words(text);
    let mut found = Vec::new();
    for (at, (line, _)) in words.iter().enumerate() {
        for phrase in REFUSED.iter().filter(|phrase| is_at(phrase, &words, at)) {
            found.push((*line, phrase));
        }
    }
    found
}

fn is_at(phrase: &Phrase, words: &[(usize, String)], at: usize) -> bool {
    let mut rest = words.iter().skip(at).map(|(_, word)| word.as_str());
    let mut last = "";
    for wanted in phrase.words.split(' ') {
        last = match rest.next() {
            Some(word) if !word.is_empty() && (wanted == "*" || wanted == word) => word,
            _ => return false,
        };
    }
    let before = at.checked_sub(1).and_then(|at| words.get(at)).map_or("", |(_, word)| word);
    phrase.instead != NOT_A || !(BEFORE.contains(&before) || AFTER.contains(&last))
}

/// Splits a text into lower-case words with their lines. Punctuation becomes an empty word.
fn words(text: &str) -> Vec<(usize, String)> {
    let mut words = Vec::new();
    for (n, line) in text.lines().enumerate() {
        for part in line.split_inclusive(|c: char| !c.is_alphanumeric() && c != '\'' && c != '-') {
            let word = part.trim_end_matches(|c: char| !c.is_alphanumeric() && c != '\'');
            let owner = word.strip_suffix("'s").filter(|word| !word.ends_with("one"));
            if !word.is_empty() {
                words.push((n + 1, owner.unwrap_or(word).to_lowercase()));
            }
            if part.ends_with(|c: char| !c.is_alphanumeric() && !c.is_whitespace()) {
                words.push((n + 1, String::new()));
            }
        }
        if line.trim().is_empty() {
            words.push((n + 1, String::new()));
        }
    }
    words
}

/// Removes what is not prose in Markdown (code blocks, inline code, targets of links), and keeps line numbers.
pub(super) fn prose(text: &str) -> String {
    let mut prose = String::with_capacity(text.len());
    let mut fenced = false;
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        if !fence && !fenced {
            let code = line.split('`').enumerate();
            let kept: Vec<&str> =
                code.map(|(n, part)| if n % 2 == 0 { part } else { "." }).collect();
            prose += &without_targets(&kept.join("`"));
        }
        fenced ^= fence;
        prose.push('\n');
    }
    prose
}

/// Removes what is not a comment in YAML, and keeps line numbers.
fn comments(text: &str) -> String {
    let comment =
        |line: &str| line.split_once('#').map_or(String::new(), |(_, comment)| comment.to_owned());
    text.lines().map(|line| comment(line) + "\n").collect()
}

/// Returns the comments, strings and names of Rust sources, and keeps line numbers. A string over several lines counts only
/// with its first.
fn spoken(text: &str) -> String {
    let mut spoken = String::with_capacity(text.len());
    for line in text.lines() {
        let (code, comment) = match line.trim_start().strip_prefix("//") {
            Some(comment) => ("", comment),
            None => line.split_once(" // ").unwrap_or((line, "")),
        };
        if !code.is_empty() {
            // Sentences do not go on from one string to the next.
            let strings = code.replace("\\\"", "'");
            for (n, part) in strings.split('"').enumerate() {
                if n % 2 == 1 {
                    spoken += part;
                } else {
                    // Each name is a sentence of its own.
                    for name in part.split(|c: char| !c.is_alphanumeric() && c != '_') {
                        spoken += &name.replace('_', " ");
                        spoken.push_str(" . ");
                    }
                }
                spoken.push_str(" . ");
            }
            spoken.push_str(". ");
        }
        spoken += comment.trim_start_matches(['/', '!']);
        spoken.push('\n');
    }
    spoken
}

fn without_targets(line: &str) -> String {
    let mut parts = line.split("](");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept.push(']');
        kept += part.split_once(')').map_or(part, |(_, rest)| rest);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::{comments, prose, refused, spoken};

    fn found(text: &str) -> Vec<(usize, &str)> {
        refused(text).into_iter().map(|(line, phrase)| (line, phrase.words)).collect()
    }

    #[test]
    fn phrases_are_found_over_line_ends_but_not_over_sentences() {
        assert_eq!(found("It was told\n  of changes. Anew!"), [(1, "told of"), (2, "anew")]);
        assert_eq!(found("what it was told. Of those"), []);
        assert_eq!(found("Nobody's port, a renewed one"), [(1, "nobody")]);
    }

    #[test]
    fn only_is_no_something_is_refused() {
        assert_eq!(found("A node is no Pod."), [(1, "is no *")]);
        assert_eq!(found("there is no Pod, it is no longer one, and is no more than that"), []);
    }

    #[test]
    fn comments_of_manifests_run_over_lines() {
        let text = "# was told\n# of it\nnobody: here\n";
        assert_eq!(found(&comments(text)), [(1, "told of")]);
    }

    #[test]
    fn comments_strings_and_names_of_sources_are_checked() {
        let text = "/// It was told\n/// of it.\nlet nobodys = \"is \\\" anew\"; // lately\n\
                    fn is_told_of_it(whom: Who) { told(of) }\n";
        assert_eq!(
            found(&spoken(text)),
            [(1, "told of"), (3, "anew"), (3, "lately"), (4, "told of"), (4, "whom")]
        );
    }

    #[test]
    fn code_and_targets_of_links_are_not_prose() {
        let text = "a `nobody` b\n```\nanew\n```\n[text](anew.md) lately\n";
        assert_eq!(found(&prose(text)), [(5, "lately")]);
    }
}

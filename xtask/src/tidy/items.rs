//! Rules on items across files: a type name is defined once in the agent, and no files of a crate use each other in a
//! circle. Sources are read by `syn`; what macros make is seen as far as its tokens say `struct`, `enum` or `union`.

mod circles;
mod names;
mod uses;

use syn::{Attribute, File};

use super::Source;

/// A source file that `syn` understands, with its crate and its place there.
struct Module<'a> {
    path: &'a str,
    /// Directory of the crate's sources.
    root: &'a str,
    /// Names of the modules from the crate's root; empty for the root itself.
    names: Vec<&'a str>,
    file: File,
}

/// Checks the crates' sources; tests are left alone.
pub(super) fn check(sources: &[Source]) -> Vec<String> {
    let (mut modules, mut complaints) = (Vec::new(), Vec::new());
    for source in sources {
        let Some((root, names)) = place(&source.path) else { continue };
        match syn::parse_file(&source.text) {
            Ok(file) => modules.push(Module { path: &source.path, root, names, file }),
            Err(err) => complaints.push(format!("{}: cannot be read: {err}", source.path)),
        }
    }
    complaints.extend(names::check(&modules));
    complaints.extend(circles::check(&modules));
    complaints
}

/// Returns the directory of the crate's sources and the names of the modules that lead to the file; `None` for
/// binaries beside the main one, and for what is built for tests alone.
fn place(path: &str) -> Option<(&str, Vec<&str>)> {
    let src = path.find("/src/")?;
    let (root, rest) = (path.get(..src + 4)?, path.get(src + 5..)?);
    let mut names: Vec<&str> = rest.strip_suffix(".rs")?.split('/').collect();
    if names.first() == Some(&"bin") || names.contains(&"tests") {
        return None;
    }
    if matches!(names[..], ["main" | "lib"]) {
        names.clear();
    }
    Some((root, names))
}

/// Returns whether an item is for tests alone.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    })
}

#[cfg(test)]
mod tests {
    use super::{Source, check};

    fn complaints(files: &[(&str, &str)]) -> Vec<String> {
        check(&Source::of(files))
    }

    #[test]
    fn a_type_name_is_defined_once_in_the_agent() {
        let files = [
            ("lb-agent/core/src/one.rs", "pub struct Flow;\nstruct Own;\n"),
            ("lb-agent/src/two.rs", "mod inner {\n    enum Flow {}\n}\n"),
            (
                "lb-common/src/lib.rs",
                "pod! {\n    /// A key.\n    pub struct Key: 8 { a: u64 }\n}\n",
            ),
            ("lb-agent/ctl/src/three.rs", "type Key = u64;\n"),
            // Each implementation of a trait names its associated types, and tests are free.
            ("lb-agent/ctl/src/four.rs", "impl Iterator for A {\n    type Item = Own;\n}\n"),
            ("lb-agent/ctl/src/five.rs", "trait B {\n    type Item;\n}\n"),
            ("lb-agent/ctl/src/six.rs", "#[cfg(test)]\nmod tests {\n    struct Own;\n}\n"),
            ("lb-agent/ctl/src/six/tests.rs", "struct Own;\n"),
            ("xtask/src/main.rs", "struct Own;\n"),
        ];
        assert_eq!(
            complaints(&files),
            [
                "`Flow` is defined more than once: lb-agent/core/src/one.rs, lb-agent/src/two.rs",
                "`Key` is defined more than once: lb-agent/ctl/src/three.rs, lb-common/src/lib.rs",
            ]
        );
    }

    #[test]
    fn a_circle_is_shown_with_its_steps() {
        let files = [
            ("a/src/lib.rs", "mod one;\nmod two;\nmod three;\npub use one::One;\n"),
            ("a/src/one.rs", "use crate::{three, two::{Two, Other}};\n"),
            ("a/src/two.rs", "fn f() { super::three::inner::g(); }\n"),
            ("a/src/three.rs", "mod inner;\n#[cfg(test)]\nmod tests { use crate::two; }\n"),
            ("a/src/three/inner.rs", "pub fn g() -> crate::one::One {}\n"),
            // A parent and its child may know each other.
            ("b/src/lib.rs", "mod one;\nfn f() { one::g() }\n"),
            ("b/src/one.rs", "use crate::f;\nuse super::h;\n"),
        ];
        assert_eq!(
            complaints(&files),
            ["a/src: files use each other in a circle: one → two → three::inner → one"]
        );
    }

    #[test]
    fn a_chain_is_no_circle() {
        let files = [
            ("a/src/main.rs", "mod one;\nmod two;\nmod three;\n"),
            ("a/src/one.rs", "use crate::two::Two;\nuse crate::three;\n"),
            ("a/src/two.rs", "use super::three::{self, Three};\n"),
            ("a/src/three.rs", "use std::one;\nuse other::two;\n"),
        ];
        assert_eq!(complaints(&files), Vec::<String>::new());
    }
}

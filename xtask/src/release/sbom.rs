//! A software bill of materials: the crates that cargo-auditable found in a build, as CycloneDX 1.5 has them. It is made from the
//! binary alone, so whoever has the binary can make it again.

use anyhow::{Context as _, Result};
use auditable_info::json_from_slice;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::image::with;

/// The name of the file for a binary.
pub(super) fn file_name(binary: &str, arch: &str) -> String {
    format!("{binary}_{arch}.cdx.json")
}

/// The most that the list of crates may take, in bytes, when it is not compressed.
const LIST_MAX: usize = 8 << 20;
/// The source of a crate that is in the registry; others are in this repository.
const REGISTRY: &str = "crates.io";

/// What cargo-auditable puts into a binary (PARSING.md of cargo-auditable).
#[derive(Deserialize)]
struct List {
    packages: Vec<Package>,
}

/// A crate.
#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    source: String,
    /// Indices in the list.
    #[serde(default)]
    dependencies: Vec<usize>,
    /// Whether it is the program itself.
    #[serde(default)]
    root: bool,
}

impl Package {
    fn reference(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    fn component(&self) -> Value {
        let reference = self.reference();
        let component = json!({
            "type": if self.root { "application" } else { "library" },
            "bom-ref": reference, "name": self.name, "version": self.version,
        });
        match self.source == REGISTRY {
            true => with(component, "purl", json!(format!("pkg:cargo/{reference}"))),
            false => component,
        }
    }
}

/// The bill of a binary.
///
/// # Errors
/// When the binary was not built with cargo-auditable.
pub(super) fn of(binary: &[u8]) -> Result<String> {
    let list =
        json_from_slice(binary, LIST_MAX).context("it was not built with cargo-auditable")?;
    bill(&list)
}

fn bill(list: &str) -> Result<String> {
    let List { packages } = serde_json::from_str(list).context("the list of crates")?;
    let root = packages.iter().find(|package| package.root);
    let root = root.context("the list of crates does not say which one is the program")?;
    let others = packages.iter().filter(|package| !package.root);
    let dependencies = packages.iter().map(|package| {
        let on = package.dependencies.iter().filter_map(|index| packages.get(*index));
        let on: Vec<String> = on.map(Package::reference).collect();
        json!({ "ref": package.reference(), "dependsOn": on })
    });
    let bill = json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": { "component": root.component() },
        "components": others.map(Package::component).collect::<Vec<_>>(),
        "dependencies": dependencies.collect::<Vec<_>>(),
    });
    Ok(serde_json::to_string_pretty(&bill).context("serialize")? + "\n")
}

#[cfg(test)]
mod tests {
    use super::bill;

    #[test]
    fn the_program_its_crates_and_what_they_use() {
        let list = r#"{"packages":[
            {"name":"a","version":"1.2.3","source":"crates.io","kind":"build"},
            {"name":"lb","version":"0.1.0","source":"local","dependencies":[0],"root":true}]}"#;
        let bill: serde_json::Value = serde_json::from_str(&bill(list).unwrap()).unwrap();
        let at = |path: &str| bill.pointer(path).and_then(serde_json::Value::as_str);
        assert_eq!(at("/metadata/component/name"), Some("lb"));
        assert_eq!(at("/metadata/component/purl"), None);
        assert_eq!(at("/components/0/purl"), Some("pkg:cargo/a@1.2.3"));
        assert_eq!(at("/dependencies/1/dependsOn/0"), at("/components/0/bom-ref"));
        assert!(super::bill(r#"{"packages":[]}"#).is_err());
        assert!(super::of(b"no binary").is_err());
    }
}

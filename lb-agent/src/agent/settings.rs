//! Settings that are not in force: what the mounted ConfigMap says now, compared with what the agent was started with.
//!
//! The DaemonSet passes each key of the ConfigMap as an environment variable, so a change takes a restart. It also mounts the
//! ConfigMap as files, which the kubelet keeps up to date: comparing both needs no access to the API.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args as _;

use crate::config::RunArgs;

/// What the settings were at the start, by the keys of the ConfigMap, and where that is mounted.
#[derive(Debug, Default)]
pub(super) struct StartSettings {
    dir: Option<PathBuf>,
    given: BTreeMap<String, String>,
}

impl StartSettings {
    /// Takes them from the environment, where the DaemonSet puts them.
    pub(super) fn new(dir: Option<PathBuf>) -> Self {
        let command = RunArgs::augment_args(clap::Command::new("run"));
        let given = command.get_arguments().filter_map(|arg| {
            let value = std::env::var(arg.get_env()?).unwrap_or_default();
            Some((arg.get_long()?.to_owned(), value.trim().to_owned()))
        });
        Self { dir, given: given.collect() }
    }

    /// The settings that are not the defaults, for the first line of the log.
    pub(super) fn differing(&self) -> String {
        let given = self.given.iter().filter(|(_, value)| !value.is_empty());
        let words: Vec<_> = given.map(|(key, value)| format!("{key}={value}")).collect();
        words.join(" ")
    }

    /// The line of `lbctl status`; `None` where no ConfigMap is mounted.
    pub(super) fn line(&self) -> Option<String> {
        let mounted = read(self.dir.as_deref()?);
        let differing = differences(&self.given, &mounted);
        Some(match differing.len() {
            0 => "as in the ConfigMap".to_owned(),
            _ => format!(
                "not in force until a restart (kubectl -n kube-system rollout restart ds/lb-agent): {}",
                differing.join("; ")
            ),
        })
    }
}

/// The keys and values of the mounted ConfigMap. One that was deleted has none.
fn read(dir: &Path) -> BTreeMap<String, String> {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let key = |file: &fs::DirEntry| Some(file.file_name().to_str()?.to_owned());
    // The kubelet's own entries begin with two dots.
    let keys = files.filter_map(|file| key(&file)).filter(|key| !key.starts_with('.'));
    keys.filter_map(|key| {
        let value = fs::read_to_string(dir.join(&key)).ok()?.trim().to_owned();
        Some((key, value))
    })
    .collect()
}

/// Settings whose values differ, in words. A key that is missing means the default, as an empty value does.
fn differences(
    given: &BTreeMap<String, String>,
    mounted: &BTreeMap<String, String>,
) -> Vec<String> {
    let word = |value: &str| match value {
        "" => "the default".to_owned(),
        value => format!("`{value}`"),
    };
    let known = given.iter().filter_map(|(key, had)| {
        let has = mounted.get(key)?;
        (has != had).then(|| format!("{key} is {}, the agent runs with {}", word(has), word(had)))
    });
    let unknown = mounted.keys().filter(|key| !given.contains_key(*key));
    known.chain(unknown.map(|key| format!("{key} is not a setting of this agent"))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{StartSettings, differences};

    fn map(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_a_restart_would_change_is_named() {
        let given = map(&[("ct-entries", ""), ("startup", "strict"), ("takeover", "manual")]);
        let mounted = map(&[
            ("ct-entries", "262144"),
            ("startup", ""),
            ("takeover", "manual"),
            ("ct-entrys", "1"),
        ]);
        assert_eq!(
            differences(&given, &mounted),
            [
                "ct-entries is `262144`, the agent runs with the default",
                "startup is the default, the agent runs with `strict`",
                "ct-entrys is not a setting of this agent",
            ]
        );
        assert_eq!(differences(&given, &given), [""; 0]);
        // What the ConfigMap does not have may come from elsewhere.
        assert_eq!(differences(&given, &BTreeMap::new()), [""; 0]);
    }

    #[test]
    fn a_mounted_config_map_is_read_without_the_kubelet_s_entries() {
        let dir = std::env::temp_dir().join(format!("lb-settings-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("..data")).unwrap();
        std::fs::write(dir.join("ct-entries"), "262144\n").unwrap();
        let settings = StartSettings::new(Some(dir.clone()));
        let line = settings.line().unwrap();
        assert!(line.contains("ct-entries is `262144`") && line.contains("restart"), "{line}");
        std::fs::write(dir.join("ct-entries"), "").unwrap();
        assert_eq!(settings.line().as_deref(), Some("as in the ConfigMap"));
        std::fs::remove_dir_all(dir).unwrap();
        assert_eq!(StartSettings::default().line(), None);
    }
}

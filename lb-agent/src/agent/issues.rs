//! All issues in one list: logged once when they appear and when they are gone, with the time of their appearance.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use lb_core::issue::Issue;

/// The issues of the last look.
#[derive(Debug, Default)]
pub(super) struct Issues {
    since: BTreeMap<Issue, u64>,
}

impl Issues {
    /// Takes over the issues as they are now, `now` in seconds since 1970, and tells which are new.
    pub(super) fn replace<'a>(
        &mut self,
        issues: impl Iterator<Item = &'a Issue>,
        now: u64,
    ) -> Vec<&'a Issue> {
        let current: BTreeSet<&Issue> = issues.collect();
        self.since.retain(|issue, _| {
            let stays = current.contains(issue);
            if !stays {
                info!(object = %issue.object, field = issue.field, "issue resolved: {}", issue.message);
            }
            stays
        });
        let is_new = |issue: &&Issue| !self.since.contains_key(*issue);
        let new: Vec<&Issue> = current.into_iter().filter(is_new).collect();
        for issue in &new {
            warn!(object = %issue.object, field = issue.field, "issue: {}", issue.message);
        }
        self.since.extend(new.iter().map(|issue| ((*issue).clone(), now)));
        new
    }

    /// The issues and when each appeared.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Issue, u64)> {
        self.since.iter().map(|(issue, since)| (issue, *since))
    }

    /// How many there are by kind of object.
    pub(super) fn by_kind(&self) -> BTreeMap<&str, i64> {
        let mut kinds = BTreeMap::new();
        for issue in self.since.keys() {
            *kinds.entry(issue.object.kind.as_str()).or_default() += 1;
        }
        kinds
    }
}

#[cfg(test)]
mod tests {
    use super::Issues;
    use lb_core::cluster::Name;
    use lb_core::issue::{Issue, ObjectRef};

    #[test]
    fn issues_keep_the_time_of_their_appearance() {
        let issue = |name: &str| {
            Issue::new(ObjectRef::new("Service", &Name::new("default", name)), "spec", "odd")
        };
        let (a, b) = (issue("a"), issue("b"));
        let mut issues = Issues::default();
        assert_eq!(issues.replace([&a].into_iter(), 10), [&a]);
        assert_eq!(issues.replace([&a, &b, &b].into_iter(), 20), [&b]);
        assert_eq!(issues.iter().collect::<Vec<_>>(), [(&a, 10), (&b, 20)]);
        assert_eq!(issues.by_kind(), [("Service", 2)].into());
        assert!(issues.replace([&b].into_iter(), 30).is_empty());
        assert_eq!(issues.replace([&a, &b].into_iter(), 40), [&a]);
        assert_eq!(issues.iter().collect::<Vec<_>>(), [(&a, 40), (&b, 20)], "it came back");
    }
}

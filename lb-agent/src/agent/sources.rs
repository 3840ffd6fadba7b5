//! What Pods may send from beside their own addresses: annotations → the map `pod_sources`.
//!
//! Written before the mark of the Pod that says so, and removed after it is gone: at no time is less or more admitted
//! than one of the two annotations says. Another's address is never a source, whatever an annotation says: the programs
//! ask that first.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use tracing::debug;

use lb_core::cluster::{Name, Pod, Prefix};
use lb_core::issue::{Issue, ObjectRef};
use lb_core::plan::MapError;
use lb_kernel::bpf::maps::Tables;

/// The map, and what it should say.
#[derive(Debug)]
pub(super) struct Sources {
    /// `--allowed-source-cidrs`.
    allowed: Box<[Prefix]>,
    written: BTreeSet<(u32, Prefix)>,
    wanted: BTreeSet<(u32, Prefix)>,
    issues: Vec<Issue>,
    begun: bool,
}

impl Sources {
    /// Takes over what an earlier run left.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub(super) fn take_over(allowed: Box<[Prefix]>, tables: &Tables) -> Result<Self, MapError> {
        let (written, wanted) = (tables.load_sources()?, BTreeSet::new());
        Ok(Self { allowed, written, wanted, issues: Vec::new(), begun: false })
    }

    /// Writes what is missing of the annotations of these Pods, by their devices.
    pub(super) fn want(&mut self, pods: &[(u32, &Name, &Pod)], tables: &mut Tables) {
        self.begun = true;
        self.wanted.clear();
        self.issues.clear();
        for (ifindex, name, pod) in pods {
            for range in pod.sources.iter().flatten() {
                let refused = if is_allowed(&self.allowed, range) {
                    self.write((*ifindex, *range), tables).err()
                } else {
                    Some("is not within --allowed-source-cidrs".to_owned())
                };
                if let Some(why) = refused {
                    let message = format!("{range} {why}: ignored");
                    let field = format!("metadata.annotations[{}]", Pod::SOURCES);
                    self.issues.push(Issue::new(ObjectRef::new("Pod", name), field, message));
                }
            }
        }
    }

    fn write(&mut self, source: (u32, Prefix), tables: &mut Tables) -> Result<(), String> {
        if !self.written.contains(&source) {
            let (ifindex, range) = &source;
            tables.set_source(*ifindex, range, true).map_err(|err| {
                let what = if err.full { "does not fit" } else { "could not be written" };
                format!("{what} in the map pod_sources ({err})")
            })?;
            self.written.insert(source);
        }
        self.wanted.insert(source);
        Ok(())
    }

    /// The devices that have more sources.
    pub(super) fn devices(&self) -> BTreeSet<u32> {
        self.wanted.iter().map(|(ifindex, _)| *ifindex).collect()
    }

    /// Removes what no annotation says any more. What cannot be removed now is tried again.
    pub(super) fn clear(&mut self, tables: &mut Tables) {
        if !self.begun {
            return;
        }
        let wanted = &self.wanted;
        self.written.retain(|source| {
            if wanted.contains(source) {
                return true;
            }
            let (ifindex, range) = source;
            let removed = tables.set_source(*ifindex, range, false);
            if let Err(err) = &removed {
                debug!(ifindex, %range, %err, "cannot remove a Pod source");
            }
            removed.is_err()
        });
    }

    /// What is wrong with annotations.
    pub(super) fn issues(&self) -> impl Iterator<Item = &Issue> {
        self.issues.iter()
    }
}

/// Whether a range is within one that the operator allows: who may annotate Pods is not who says which addresses they
/// have.
fn is_allowed(allowed: &[Prefix], range: &Prefix) -> bool {
    allowed.iter().any(|allowed| allowed.covers(range))
}

#[cfg(test)]
mod tests {
    use super::is_allowed;
    use lb_core::cluster::Prefix;

    #[test]
    fn what_the_operator_does_not_allow_is_not_admitted() {
        let range = |text: &str| text.parse::<Prefix>().unwrap();
        let allowed = [range("10.0.0.0/8"), range("fd00:8::/32")];
        for (text, want) in [
            ("10.244.0.0/16", true),
            ("10.0.0.0/8", true),
            ("fd00:8:7::/48", true),
            ("0.0.0.0/0", false),
            ("192.0.2.1/32", false),
            ("::/0", false),
        ] {
            assert_eq!(is_allowed(&allowed, &range(text)), want, "{text}");
            assert!(!is_allowed(&[], &range(text)), "{text}: nothing is, by default");
        }
    }
}

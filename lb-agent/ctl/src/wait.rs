//! `lbctl wait`: the object that is named, and what the agent says of it, in words.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::duration;
use lb_core::admin::progress::{AwaitedObject, ObjectProgress};
use lb_core::cluster::Name;

/// Flags of `wait`.
#[derive(Clone, Debug, clap::Args)]
pub struct WaitArgs {
    /// svc/NAMESPACE/NAME, svc/NAME with -n, policy/NAMESPACE/NAME, or policy/NAME of a ClusterNetworkPolicy
    #[arg(value_name = "KIND/NAMESPACE/NAME", value_parser = awaited)]
    pub object: AwaitedObject,
    /// Namespace of svc/NAME
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Wait until the maps of this node have the Service, as they do unless this is given with a policy
    #[arg(long, conflicts_with = "enforced")]
    pub programmed: bool,
    /// Wait until this node enforces the policy
    #[arg(long)]
    pub enforced: bool,
    /// Of a policy: wait for this `metadata.generation` of it, or a later one
    #[arg(long, value_name = "NUMBER", requires = "enforced")]
    pub generation: Option<i64>,
    /// How long to wait (60s, 5m)
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

impl WaitArgs {
    /// What is waited for.
    ///
    /// # Errors
    /// When a flag is for another kind of object.
    pub fn wanted(&self) -> anyhow::Result<AwaitedObject> {
        match (&self.object, self.programmed, self.enforced) {
            (AwaitedObject::Service(_), _, true) => {
                bail!("a Service is not enforced: use --programmed")
            }
            (AwaitedObject::Policy(..), true, _) => {
                bail!("a policy is not programmed: use --enforced")
            }
            (AwaitedObject::Service(name), ..) if name.namespace.is_empty() => {
                let Some(namespace) = &self.namespace else {
                    bail!("a Service has a namespace: use svc/NAMESPACE/{}, or -n", name.name)
                };
                Ok(AwaitedObject::Service(Name::new(namespace.as_str(), &*name.name)))
            }
            (AwaitedObject::Service(_), ..) => Ok(self.object.clone()),
            (AwaitedObject::Policy(name, _), ..) => {
                Ok(AwaitedObject::Policy(name.clone(), self.generation))
            }
        }
    }
}

/// `svc/ns/name`, `policy/ns/name`, `policy/name`, with the short names of kubectl.
fn awaited(text: &str) -> Result<AwaitedObject, String> {
    parse(text).map_err(|error| format!("{error:#}"))
}

fn parse(text: &str) -> anyhow::Result<AwaitedObject> {
    const FORM: &str = "expected svc/NAMESPACE/NAME, policy/NAMESPACE/NAME or policy/NAME of a ClusterNetworkPolicy";
    let (kind, rest) = text.split_once('/').context(FORM)?;
    let name = match rest.split('/').collect::<Vec<_>>().as_slice() {
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            Name::new(*namespace, *name)
        }
        [name] if !name.is_empty() => Name::new("", *name),
        _ => bail!(FORM),
    };
    match (kind, name.namespace.is_empty()) {
        ("svc" | "service" | "services", _) => Ok(AwaitedObject::Service(name)),
        ("policy" | "netpol" | "networkpolicy", _) => Ok(AwaitedObject::Policy(name, None)),
        ("cnp" | "clusternetworkpolicy", true) => Ok(AwaitedObject::Policy(name, None)),
        ("cnp" | "clusternetworkpolicy", false) => bail!("a ClusterNetworkPolicy has no namespace"),
        (other, _) => bail!("{other} is neither a Service nor a policy: {FORM}"),
    }
}

/// What was reached, for the last line of the output.
pub struct Reached<'a>(pub &'a AwaitedObject);

impl fmt::Display for Reached<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            AwaitedObject::Service(name) => write!(f, "svc/{name} programmed"),
            AwaitedObject::Policy(name, _) => write!(f, "policy/{name} enforced"),
        }
    }
}

/// Why it is not reached; `None` when it is.
pub fn obstacle(wanted: &AwaitedObject, progress: &ObjectProgress) -> Option<String> {
    let what = match wanted {
        AwaitedObject::Service(name) => format!("svc/{name}"),
        AwaitedObject::Policy(name, _) => format!("policy/{name}"),
    };
    match progress {
        ObjectProgress::Done => None,
        ObjectProgress::Missing => Some(format!("{what}: the agent knows no such object")),
        ObjectProgress::Pending(why) => Some(format!("{what}: {why}")),
        ObjectProgress::Refused(why) => Some(format!("{what}: {}", why.join("; "))),
    }
}

#[cfg(test)]
mod tests {
    use super::{WaitArgs, obstacle, parse};
    use lb_core::admin::progress::{AwaitedObject, ObjectProgress};

    #[derive(clap::Parser)]
    struct WaitCommand {
        #[command(flatten)]
        args: WaitArgs,
    }

    #[test]
    fn objects_are_named_by_kind_namespace_and_name() {
        let said = |text: &str| match parse(text) {
            Ok(AwaitedObject::Service(name)) => format!("Service {name}"),
            Ok(AwaitedObject::Policy(name, _)) => format!("Policy {name}"),
            Err(error) => format!("{error:#}"),
        };
        assert_eq!(said("svc/shop/web"), "Service shop/web");
        assert_eq!(said("policy/shop/deny"), "Policy shop/deny");
        assert_eq!(said("netpol/shop/deny"), "Policy shop/deny");
        assert_eq!(said("policy/admin"), "Policy admin");
        assert_eq!(said("cnp/admin"), "Policy admin");
        for (text, error) in [
            ("web", "expected svc/"),
            ("svc/a/b/c", "expected svc/"),
            ("cnp/a/b", "a ClusterNetworkPolicy has no namespace"),
            ("pod/a/b", "pod is neither a Service nor a policy"),
        ] {
            assert!(said(text).starts_with(error), "{text}: {}", said(text));
        }
    }

    #[test]
    fn a_service_without_a_namespace_is_of_the_given_one() {
        let wanted = |words: &[&str]| {
            let words = ["wait"].iter().chain(words);
            let parsed = <WaitCommand as clap::Parser>::try_parse_from(words).unwrap();
            match parsed.args.wanted() {
                Ok(AwaitedObject::Service(name)) => name.to_string(),
                Ok(AwaitedObject::Policy(name, _)) => format!("policy {name}"),
                Err(error) => error.to_string(),
            }
        };
        assert_eq!(wanted(&["svc/web", "-n", "shop"]), "shop/web");
        assert_eq!(wanted(&["svc/db/web", "-n", "shop"]), "db/web");
        assert_eq!(wanted(&["policy/admin", "-n", "shop"]), "policy admin");
        assert_eq!(wanted(&["svc/web"]), "a Service has a namespace: use svc/NAMESPACE/web, or -n");
    }

    #[test]
    fn the_reason_names_the_object() {
        let wanted = parse("svc/shop/web").unwrap();
        let said = |progress| obstacle(&wanted, &progress);
        assert_eq!(said(ObjectProgress::Done), None);
        assert_eq!(
            said(ObjectProgress::Missing).as_deref(),
            Some("svc/shop/web: the agent knows no such object")
        );
        assert_eq!(
            said(ObjectProgress::Refused(vec!["no room".into(), "bad".into()])).as_deref(),
            Some("svc/shop/web: no room; bad")
        );
        assert_eq!(
            said(ObjectProgress::Pending("later".into())).as_deref(),
            Some("svc/shop/web: later")
        );
    }
}

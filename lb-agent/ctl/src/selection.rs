//! `-n`, `-A`, `--service`, `--pod`, `--ip`: which rows a command is about. `namespace/name` is accepted wherever a
//! name is.

use std::net::IpAddr;

use anyhow::bail;

/// Namespace of a name that has none, as for kubectl.
const DEFAULT_NAMESPACE: &str = "default";

/// The flags that select rows.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Selection {
    /// Only this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// All namespaces; the default
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Only this Service: NAMESPACE/NAME, or NAME in the namespace of -n
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Only this Pod: NAMESPACE/NAME, or NAME in the namespace of -n
    #[arg(long, value_name = "POD")]
    pub pod: Option<String>,
    /// Only this address
    #[arg(long, value_name = "IP")]
    pub ip: Option<IpAddr>,
}

impl Selection {
    /// The same selection with names completed to `namespace/name`. `name` is the positional argument of the
    /// command, which stands for `--service` or `--pod`, as `of_pods` says. A leading `svc/` or `pod/` is accepted
    /// with a bare name.
    ///
    /// # Errors
    /// When both are given and differ, or a name has too many parts.
    pub fn complete(self, name: Option<String>, of_pods: bool) -> anyhow::Result<Self> {
        let Self { namespace, all_namespaces, service, pod, ip } = self;
        let (service, pod) = match (name, service, pod) {
            (Some(_), Some(flag), _) if !of_pods => {
                bail!("--service {flag}: the Service is already given as an argument")
            }
            (Some(_), _, Some(flag)) if of_pods => {
                bail!("--pod {flag}: the Pod is already given as an argument")
            }
            (Some(name), service, _) if of_pods => (service, Some(name)),
            (Some(name), _, pod) => (Some(name), pod),
            (None, service, pod) => (service, pod),
        };
        let full = |name: Option<String>| {
            name.map(|name| full_name(&name, namespace.as_deref())).transpose()
        };
        let (service, pod) = (full(service)?, full(pod)?);
        // A full name says more than the namespace, which only served to complete it.
        let namespace = namespace.filter(|_| service.is_none() && pod.is_none());
        Ok(Self { namespace, all_namespaces, service, pod, ip })
    }

    /// Whether an object of this namespace is wanted.
    pub fn takes_namespace(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
    }

    /// Whether this Service (`namespace/name`) is wanted.
    pub fn takes_service(&self, name: &str) -> bool {
        self.service.as_deref().is_none_or(|wanted| wanted == name)
    }

    /// Whether this Pod (`namespace/name`, empty = not known) is wanted.
    pub fn takes_pod(&self, name: &str) -> bool {
        self.pod.as_deref().is_none_or(|wanted| wanted == name)
    }

    /// Whether something with these addresses is wanted.
    pub fn takes_ip(&self, ips: &[IpAddr]) -> bool {
        self.ip.as_ref().is_none_or(|wanted| ips.contains(wanted))
    }

    /// Whether anything is left out.
    pub fn is_limited(&self) -> bool {
        self.namespace.is_some()
            || self.service.is_some()
            || self.pod.is_some()
            || self.ip.is_some()
    }
}

fn full_name(name: &str, namespace: Option<&str>) -> anyhow::Result<String> {
    let namespace = namespace.unwrap_or(DEFAULT_NAMESPACE);
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        ["svc" | "service" | "pod" | "po", name] | [name] if !name.is_empty() => {
            Ok(format!("{namespace}/{name}"))
        }
        [own, name] if !own.is_empty() && !name.is_empty() => Ok(format!("{own}/{name}")),
        _ => bail!("{name}: expected NAME or NAMESPACE/NAME"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Selection, full_name};

    #[test]
    fn names_are_completed() {
        let cases = [
            ("web", None, Some("default/web")),
            ("web", Some("shop"), Some("shop/web")),
            ("shop/web", None, Some("shop/web")),
            ("shop/web", Some("other"), Some("shop/web")),
            ("svc/web", None, Some("default/web")),
            ("pod/web-1", Some("shop"), Some("shop/web-1")),
            ("a/b/c", None, None),
            ("/web", None, None),
            ("", None, None),
        ];
        for (name, namespace, want) in cases {
            assert_eq!(full_name(name, namespace).ok().as_deref(), want, "{name:?} {namespace:?}");
        }
    }

    #[test]
    fn the_positional_name_is_the_commands_own_kind() {
        let flags = Selection { service: Some("web".to_owned()), ..Selection::default() };
        let pods = flags.clone().complete(Some("a/p".to_owned()), true).unwrap();
        assert_eq!(pods.service.as_deref(), Some("default/web"));
        assert_eq!(pods.pod.as_deref(), Some("a/p"));
        let error = flags.complete(Some("a/web".to_owned()), false).unwrap_err().to_string();
        assert_eq!(error, "--service web: the Service is already given as an argument");
    }
}

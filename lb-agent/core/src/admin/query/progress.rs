//! Whether the maps say what an object says.

use crate::admin::progress::{AwaitedObject, ObjectProgress};
use crate::cluster::{Cluster, Name, Tier};
use crate::issue::{Issue, ObjectRef};

/// What the loop knows beside the records.
#[derive(Clone, Debug, Default)]
pub struct LoopProgress {
    /// The first plan was applied, and no change of a Service or of endpoints waits for a write.
    pub services_written: bool,
    /// All changes that policies depend on are compiled and written.
    pub policies_written: bool,
    /// Devices of Pods, and those that have their programs.
    pub pods: (usize, usize),
    /// What keeps objects from being as they are written: no room, fields that are not understood.
    pub issues: Vec<Issue>,
}

/// How far the agent is with an object.
pub fn progress(cluster: &Cluster, state: &LoopProgress, wanted: &AwaitedObject) -> ObjectProgress {
    if !cluster.synced() {
        return pending("the agent has not read the whole cluster state yet");
    }
    match wanted {
        AwaitedObject::Service(name) => service(cluster, state, name),
        AwaitedObject::Policy(name, generation) => policy(cluster, state, name, *generation),
    }
}

fn service(cluster: &Cluster, state: &LoopProgress, name: &Name) -> ObjectProgress {
    if cluster.service(name).is_none() {
        return ObjectProgress::Missing;
    }
    if !state.services_written {
        return pending("changes of Services are not in the maps yet");
    }
    state.verdict(&ObjectRef::new("Service", name))
}

fn policy(
    cluster: &Cluster,
    state: &LoopProgress,
    name: &Name,
    generation: Option<i64>,
) -> ObjectProgress {
    let Some(policy) = cluster.policies().find(|(known, _)| *known == name).map(|(_, it)| it)
    else {
        return ObjectProgress::Missing;
    };
    if let Some(wanted) = generation.filter(|wanted| policy.generation < *wanted) {
        let known = policy.generation;
        return ObjectProgress::Pending(format!(
            "the agent has generation {known} of it, not {wanted} yet"
        ));
    }
    let kind = match policy.tier {
        Tier::NetworkPolicy => "NetworkPolicy",
        Tier::Admin | Tier::Baseline => "ClusterNetworkPolicy",
    };
    if policy.shadow {
        let why = "it is in shadow mode: evaluated and counted, not enforced";
        return ObjectProgress::Refused(vec![why.to_owned()]);
    }
    if !state.policies_written {
        return pending("changes of policies are not in the maps yet");
    }
    let (all, attached) = state.pods;
    if attached < all {
        return ObjectProgress::Pending(format!(
            "{} of {all} devices of Pods of this node have no programs yet",
            all - attached
        ));
    }
    state.verdict(&ObjectRef::new(kind, name))
}

fn pending(why: &str) -> ObjectProgress {
    ObjectProgress::Pending(why.to_owned())
}

impl LoopProgress {
    fn verdict(&self, object: &ObjectRef) -> ObjectProgress {
        let about = self.issues.iter().filter(|issue| issue.object == *object);
        let found: Vec<String> = about
            .map(|issue| match issue.field.as_str() {
                "" => issue.message.clone(),
                field => format!("{field}: {}", issue.message),
            })
            .collect();
        if found.is_empty() { ObjectProgress::Done } else { ObjectProgress::Refused(found) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{
        Change, Event, Kind, Labels, Namespaces, PodSelector, Policy, Selector, Service,
        ServiceType, TrafficPolicy,
    };

    fn name(text: &str) -> Name {
        Name::parse(text)
    }

    fn cluster() -> Cluster {
        let mut cluster = Cluster::new("n1");
        let service = Service {
            service_type: ServiceType::ClusterIp,
            cluster_ips: Box::default(),
            ports: Box::default(),
            internal_policy: TrafficPolicy::Cluster,
            created: None,
            selector: Labels::default(),
            extra: None,
        };
        cluster.apply(Event::Service(Change::Applied(name("shop/web"), service)));
        let policy = |tier, shadow| Policy {
            tier,
            priority: 0,
            subject: PodSelector { namespaces: Namespaces::Own, pods: Selector::default() },
            ingress: Some(Box::default()),
            egress: None,
            shadow,
            generation: 2,
            created: 0,
        };
        let deny = policy(Tier::NetworkPolicy, false);
        cluster.apply(Event::NetworkPolicy(Change::Applied(name("shop/deny"), deny)));
        let tried = policy(Tier::NetworkPolicy, true);
        cluster.apply(Event::NetworkPolicy(Change::Applied(name("shop/tried"), tried)));
        let admin = policy(Tier::Admin, false);
        cluster.apply(Event::ClusterNetworkPolicy(Change::Applied(name("admin"), admin)));
        cluster
    }

    /// A loop that has nothing left to do.
    fn idle() -> LoopProgress {
        let (services_written, policies_written) = (true, true);
        LoopProgress { services_written, policies_written, pods: (3, 3), issues: Vec::new() }
    }

    #[test]
    fn an_object_is_done_when_nothing_about_it_is_left_to_do() {
        let mut cluster = cluster();
        let service = AwaitedObject::Service(name("shop/web"));
        let policy = |full: &str| AwaitedObject::Policy(name(full), None);
        let ask = |cluster: &Cluster, state: &LoopProgress, wanted: &AwaitedObject| match progress(
            cluster, state, wanted,
        ) {
            ObjectProgress::Done => "done".to_owned(),
            ObjectProgress::Missing => "missing".to_owned(),
            ObjectProgress::Pending(why) => format!("pending: {why}"),
            ObjectProgress::Refused(why) => format!("refused: {}", why.join("; ")),
        };
        assert!(ask(&cluster, &idle(), &service).starts_with("pending: the agent has not read"));
        Kind::ALL.into_iter().for_each(|kind| drop(cluster.apply(Event::Synced(kind))));
        let done = |wanted: &AwaitedObject| ask(&cluster, &idle(), wanted);
        assert_eq!(done(&service), "done");
        assert_eq!(done(&policy("shop/deny")), "done");
        assert_eq!(done(&policy("admin")), "done");
        assert_eq!(done(&policy("shop/web")), "missing");
        assert_eq!(done(&AwaitedObject::Service(name("shop/deny"))), "missing");
        assert!(done(&policy("shop/tried")).starts_with("refused: it is in shadow mode"));
        let of = |generation| AwaitedObject::Policy(name("shop/deny"), Some(generation));
        assert_eq!(done(&of(2)), "done");
        assert_eq!(done(&of(3)), "pending: the agent has generation 2 of it, not 3 yet");

        let behind = LoopProgress { services_written: false, ..idle() };
        assert!(ask(&cluster, &behind, &service).starts_with("pending: changes of Services"));
        assert_eq!(ask(&cluster, &behind, &policy("admin")), "done");
        let behind = LoopProgress { policies_written: false, ..idle() };
        assert!(
            ask(&cluster, &behind, &policy("admin")).starts_with("pending: changes of policies")
        );
        assert_eq!(ask(&cluster, &behind, &service), "done");
        let bare = LoopProgress { pods: (3, 1), ..idle() };
        assert!(ask(&cluster, &bare, &policy("admin")).starts_with("pending: 2 of 3 devices"));

        let issue = |kind: &str, full: &str| {
            Issue::new(ObjectRef::new(kind, &name(full)), "spec", "has no room")
        };
        let issues = vec![
            issue("Service", "shop/web"),
            issue("NetworkPolicy", "shop/deny"),
            issue("NetworkPolicy", "shop/admin"),
        ];
        let full = LoopProgress { issues, ..idle() };
        assert_eq!(ask(&cluster, &full, &service), "refused: spec: has no room");
        assert_eq!(ask(&cluster, &full, &policy("shop/deny")), "refused: spec: has no room");
        assert_eq!(ask(&cluster, &full, &policy("admin")), "done");
    }
}

//! Redaction of JSON documents: addresses, MAC addresses, UIDs and names become hashes, the same ones for the same input in every
//! document, so that what belongs together still does.
//!
//! What is a name is found in the documents themselves: the fields that hold names, and the parts of references such as
//! `shop/web:80`. Each of these words is then replaced wherever it stands. Hashes are pseudonyms: whoever knows a name can compute
//! its hash.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Fields whose values are names, or references with names in them, in the documents of lbctl.
const NAMES: [&str; 21] = [
    "backend",
    "by",
    "destination",
    "dst",
    "endpoint",
    "host",
    "iface",
    "name",
    "namespace",
    "node",
    "object",
    "pod",
    "pods",
    "policies",
    "policy",
    "service",
    "src",
    "subject",
    "via",
    "who",
    "zone",
];
/// Words in these fields that are not names, or names that every cluster has.
const WORDS: [&str; 44] = [
    "Service",
    "Pod",
    "Node",
    "Namespace",
    "NetworkPolicy",
    "ClusterNetworkPolicy",
    "EndpointSlice",
    "ServiceCIDR",
    "File",
    "node",
    "svc",
    "TCP",
    "UDP",
    "SCTP",
    "ICMP",
    "ingress",
    "egress",
    "default-deny",
    "from",
    "to",
    "world",
    "rule",
    "ports",
    "all",
    "none",
    "kube-system",
    "kube-public",
    "kube-node-lease",
    "default",
    "kubernetes",
    "kube-dns",
    "coredns",
    "lb-agent",
    "dns",
    "dns-tcp",
    "metrics",
    "http",
    "https",
    "Local",
    "Cluster",
    "None",
    "ClientIP",
    "ClusterIP",
    "NodePort",
];
/// Characters of a word; a colon for IPv6 addresses.
fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '.' | '_' | ':')
}

/// The words that are replaced.
#[derive(Debug, Default)]
pub struct Redaction {
    names: BTreeSet<String>,
}

impl Redaction {
    /// Knows one name.
    pub fn of_name(name: &str) -> Self {
        Self { names: BTreeSet::from([name.to_owned()]) }
    }

    /// Learns the names in a document.
    pub fn learn(&mut self, document: &Value) {
        match document {
            Value::Object(fields) => {
                for (key, value) in fields {
                    if NAMES.contains(&key.as_str()) {
                        self.learn_from(value);
                    }
                    if key == "labels"
                        && let Value::Object(labels) = value
                    {
                        for value in labels.values() {
                            self.learn_from(value);
                        }
                    }
                    self.learn(value);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.learn(item)),
            _ => {}
        }
    }

    fn learn_from(&mut self, value: &Value) {
        match value {
            Value::String(text) => {
                let parts = text.split(|c: char| !is_of_word(c) || c == ':');
                let names = parts.filter(|part| is_name(part));
                self.names.extend(names.map(ToOwned::to_owned));
            }
            Value::Array(items) => items.iter().for_each(|item| self.learn_from(item)),
            _ => {}
        }
    }

    /// Replaces addresses and known names in a document, in keys, too.
    pub fn apply(&self, document: &mut Value) {
        match document {
            Value::String(text) => *text = self.text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.apply(item)),
            Value::Object(fields) => fields.values_mut().for_each(|value| self.apply(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Replaces addresses and known names in a text.
    pub fn text(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while !rest.is_empty() {
            let end = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            out += &self.word(word);
            let next = after.find(is_of_word).unwrap_or(after.len());
            let (between, after) = after.split_at(next);
            out += between;
            rest = after;
        }
        out
    }

    /// A word with what stands before and behind its colons: `10.0.0.1:80`, `web:80`, `fd00::1`.
    fn word(&self, word: &str) -> String {
        // A full stop may end a sentence.
        let (body, stop) = word.strip_suffix('.').map_or((word, ""), |body| (body, "."));
        if let Some(known) = self.known(body) {
            return known + stop;
        }
        match body.rsplit_once(':') {
            Some((head, tail)) if !head.is_empty() => format!("{}:{tail}{stop}", self.word(head)),
            _ => word.to_owned(),
        }
    }

    fn known(&self, word: &str) -> Option<String> {
        if let Ok(ip) = word.parse::<IpAddr>() {
            return (!ip.is_unspecified() && !ip.is_loopback())
                .then(|| format!("ip-{}", hash(word)));
        }
        if is_mac(word) {
            return Some(format!("mac-{}", hash(word)));
        }
        if is_uid(word) {
            return Some(format!("uid-{}", hash(word)));
        }
        self.names.contains(word).then(|| format!("n-{}", hash(word)))
    }
}

/// Whether this is a MAC address: six pairs of hexadecimal digits.
fn is_mac(word: &str) -> bool {
    let pairs: Vec<&str> = word.split(':').collect();
    let is_pair = |pair: &&str| pair.len() == 2 && is_hex(pair);
    pairs.len() == 6 && pairs.iter().all(is_pair)
}

/// Whether this is a UID as Kubernetes makes them (RFC 9562).
fn is_uid(word: &str) -> bool {
    let parts: Vec<&str> = word.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    lengths == [8, 4, 4, 4, 12] && parts.iter().all(|part| is_hex(part))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether this may be a name: not an address, a number, or a word of the documents.
fn is_name(part: &str) -> bool {
    let has_letter = part.bytes().any(|byte| byte.is_ascii_alphabetic());
    has_letter && part.parse::<IpAddr>().is_err() && !WORDS.contains(&part) && part.len() > 1
}

/// The first 40 bits of SHA-256.
fn hash(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Redaction, hash};

    #[test]
    fn addresses_and_names_become_the_same_hashes_everywhere() {
        let mut documents = [
            json!([{"namespace": "shop", "name": "web", "ips": ["10.1.0.3", "fd00::1"], "node": "worker-1", "ready": 2}]),
            json!({"flows": [{"src": "shop/web-7f9:40000", "dst": "10.1.0.3:8080", "verdict": "denied", "by": "shop/only-friends ingress[0]"}],
                   "uid": "0b9a9a36-7c1e-4d3b-8a53-0f9a3c1d2e4f", "mac": "0a:58:0a:f4:01:02", "zone": "secret-zone",
                   "text": "shop/web (10.1.0.3) on worker-1 listens on 0.0.0.0:8080, [fd00::1]:80 and 127.0.0.1:1.",
                   "version": "0.1.0", "code": "DENY_INGRESS_PEER", "via": "default/kubernetes:https",
                   "api": "https://10.96.0.1:443", "internalPolicy": "Cluster"}),
            json!({"labels": {"app": "secret-app"}, "because": ["wants app=secret-app of Service shop/web, not shopping"]}),
        ];
        let mut redaction = Redaction::default();
        documents.iter().for_each(|document| redaction.learn(document));
        documents.iter_mut().for_each(|document| redaction.apply(document));
        let text = documents.iter().map(ToString::to_string).collect::<String>();
        for secret in [
            "web-7f9",
            "worker-1",
            "10.1.0.3",
            "fd00::1",
            "only-friends",
            "secret-app",
            "secret-zone",
            "0b9a9a36",
            "0a:58",
            "\"shop\"",
            "shop/",
        ] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        for kept in [
            "0.0.0.0:8080",
            "127.0.0.1:1",
            "0.1.0",
            "DENY_INGRESS_PEER",
            "40000",
            "not shopping",
            "\"Cluster\"",
            "https://ip-",
            "default/kubernetes:https",
            "Service",
        ] {
            assert!(text.contains(kept), "{kept} not in {text}");
        }
        let web = format!("n-{}/n-{}", hash("shop"), hash("web"));
        assert_eq!(text.matches(&web).count(), 2, "{text}");
        assert_eq!(text.matches(&format!("ip-{}", hash("10.1.0.3"))).count(), 3, "{text}");
        assert!(text.contains(&format!("[ip-{}]:80", hash("fd00::1"))), "{text}");
    }
}

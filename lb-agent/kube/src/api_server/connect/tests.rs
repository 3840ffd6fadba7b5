//! Where the server is looked for, and what is said when there is none.
#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;

use super::{ConnectOptions, account_config, connect, kubelet_server};

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lb-connect-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

const KUBELET: &str = "
apiVersion: v1
kind: Config
current-context: b
contexts:
- {name: a, context: {cluster: one, user: u}}
- {name: b, context: {cluster: two, user: u}}
clusters:
- {name: one, cluster: {server: 'https://172.31.0.1:6443'}}
- {name: two, cluster: {server: 'https://172.31.0.2:6443'}}
users: [{name: u, user: {client-certificate: /nowhere}}]
";

#[test]
fn the_kubelets_server_is_that_of_its_context() {
    let scratch = Scratch::new("kubelet");
    for (name, text, want) in [
        ("context", KUBELET.to_owned(), "https://172.31.0.2:6443"),
        ("no context", KUBELET.replace("current-context: b", ""), "https://172.31.0.1:6443"),
    ] {
        assert_eq!(kubelet_server(&scratch.file("conf", &text)).unwrap(), want, "{name}");
    }
    let err = kubelet_server(&scratch.file("conf", "apiVersion: v1\nkind: Config\n")).unwrap_err();
    assert_eq!(err.to_string(), "the kubelet's kubeconfig has no server");
}

#[tokio::test]
async fn the_accounts_credentials_go_with_another_address() {
    let scratch = Scratch::new("account");
    let missing = account_config("https://172.31.0.2:6443", &scratch.0).await.unwrap_err();
    assert!(missing.to_string().contains("token is missing: no service account is mounted"));
    let token = scratch.file("token", "secret");
    // Any certificate will do: it is only read here.
    let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let certificate = scratch.file("ca.crt", certificate);
    let config = account_config("https://172.31.0.2:6443", &scratch.0).await.unwrap();
    assert_eq!(config.cluster_url.to_string(), "https://172.31.0.2:6443/");
    assert_eq!(config.root_cert_file, Some(certificate));
    assert!(config.root_cert.is_some());
    assert_eq!(config.auth_info.token_file, Some(token.display().to_string()));
    let err = account_config("not a url", &scratch.0).await.unwrap_err();
    assert_eq!(err.to_string(), "`not a url` is not a URL");
}

#[tokio::test]
async fn every_address_that_was_tried_is_named() {
    // Not in a cluster: there is neither its environment nor a kubelet's file.
    let kubelet_kubeconfig = PathBuf::from("/nowhere/kubelet.conf");
    let known_servers = PathBuf::from("/nowhere/api-servers");
    let options = ConnectOptions { kubelet_kubeconfig, known_servers, ..ConnectOptions::default() };
    let Err(err) = connect(&options).await else { panic!("there is no server") };
    let text = err.to_string();
    for part in [
        "no API server: in-cluster: ",
        "/nowhere/kubelet.conf: ",
        "/nowhere/api-servers: no API server was known before",
        "set --api-server",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

//! Credentials that change, and those that cannot be used.

use std::{path::PathBuf, sync::Arc};

use futures::StreamExt;

use super::super::{
    collection::Objects, credentials::Credentials, own_record, server::ApiServer, twin::Twin,
};
use crate::store::{Change, Collection, StoreError, StoreProblem};

fn records(kubeconfig: PathBuf) -> Objects {
    Objects::new(Arc::new(ApiServer::new(Credentials::Kubeconfig(kubeconfig))), own_record::selection())
}

#[tokio::test]
async fn a_token_that_was_rotated_is_read_again_after_one_refusal() {
    let twin = Twin::on_a_thread();
    let mut objects = records(twin.kubeconfig());
    let version = objects.list().await.unwrap().position.version;
    let mut changes = objects.watch(version).await.unwrap();
    twin.bookmark();
    assert_eq!(changes.next().await, Some(Ok(Change::Progress(version))));
    twin.rotate_token("second");
    let refused = objects.list().await.unwrap_err().problem;
    assert!(matches!(&refused, StoreProblem::Denied { why } if why.contains("renew it")), "{refused}");
    objects.list().await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let twin = Twin::on_a_thread();
    let kubeconfig = std::fs::read_to_string(twin.kubeconfig()).unwrap();
    // Port 1 of the loopback interface (tcpmux) has no listener.
    let (before, after) = kubeconfig.split_once("http://127.0.0.1:").unwrap();
    let after = after.trim_start_matches(|digit: char| digit.is_ascii_digit());
    std::fs::write(twin.kubeconfig(), format!("{before}http://127.0.0.1:1{after}")).unwrap();
    let StoreError { operation, problem } = records(twin.kubeconfig()).position().await.unwrap_err();
    assert_eq!(operation, "list the WireloomNodes at http://127.0.0.1:1");
    assert!(matches!(problem, StoreProblem::Unavailable { why, .. } if why.contains("Connection refused")));
}

#[tokio::test]
async fn what_cannot_be_used_is_named_with_the_fix() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    let cases = [
        (None, "write the file's path into kubeconfig in [membership]"),
        (Some("users: ["), "`kubectl --kubeconfig FILE get nodes` must work with it"),
        (Some("kind: Config"), "`kubectl config use-context` chooses"),
        (Some("{user}: {exec: {command: aws}}"), "an agent that is root runs none"),
        (Some("{cluster}: {server: 'http://192.0.2.1'}"), "does not begin with https://"),
        (
            Some("{cluster}: {server: 'https://192.0.2.1', insecure-skip-tls-verify: true}"),
            "certificate-authority",
        ),
        (Some("{user}: {tokenFile: /nonexistent/token}"), "/nonexistent/token"),
        (
            Some("{cluster}: {server: 'https://192.0.2.1', certificate-authority: /nonexistent/ca}"),
            "/nonexistent/ca",
        ),
    ];
    for (text, expected) in cases {
        if let Some(text) = text {
            let server = "cluster: {server: 'https://192.0.2.1'}";
            let (cluster, user) = match text.split_once(": ") {
                Some(("{cluster}", cluster)) => (format!("cluster: {cluster}"), "user: {}".into()),
                Some(("{user}", user)) => (server.into(), format!("user: {user}")),
                _ => Default::default(),
            };
            let whole = format!(
                "current-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
                 clusters: [{{name: c, {cluster}}}]\nusers: [{{name: u, {user}}}]\n"
            );
            std::fs::write(&path, if cluster.is_empty() { text } else { &whole }).unwrap();
        }
        let error = Credentials::Kubeconfig(path.clone()).client().await.err().expect(expected);
        let text = error.to_string();
        assert!(text.starts_with(&format!("cannot use the kubeconfig {}: ", path.display())), "{text}");
        assert!(text.contains(expected), "{text}");
        assert!(matches!(error.problem, StoreProblem::Denied { .. }));
    }
}

#[tokio::test]
async fn no_secret_of_a_kubeconfig_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    let cases = [
        // On the wrong line, of the wrong kind, without its quote, as an anchor, and with a character that YAML
        // forbids.
        "users:\n- name: u\n  user:\n    token:\n  sesame-1\n",
        "users:\n- name: u\n  user: sesame-1\n",
        "users:\n- name: u\n  user: {token: \"sesame-1}\n",
        "users:\n- name: u\n  user: {token: *sesame-1}\n",
        "users:\n- name: u\n  user: {token: @sesame-1}\n",
        "users: sesame-1\n",
        "kind: Config\nsesame-1: [\n",
        "sesame-1",
    ];
    for text in cases {
        std::fs::write(&path, text).unwrap();
        let error = Credentials::Kubeconfig(path.clone()).client().await.err().expect(text);
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("sesame"), "{shown}");
        assert!(shown.contains("it is not a kubeconfig in YAML at line "), "{text}: {shown}");
    }
}

#[tokio::test]
async fn outside_a_pod_the_fix_is_a_kubeconfig() {
    let error = Credentials::Pod.client().await.err().unwrap().to_string();
    assert!(error.starts_with("cannot use the service account of this pod: "), "{error}");
    assert!(error.contains("kubeconfig"), "{error}");
}

//! Credentials that change, and those that cannot be used.

use super::{
    super::{collection::Objects, credentials::Credentials, own_record, twin::Twin},
    server,
};
use crate::store::{Collection, StoreProblem};

#[tokio::test]
async fn a_token_that_was_rotated_is_read_again_after_one_refusal() {
    let twin = Twin::start().await;
    let mut objects = Objects::new(server(&twin), own_record::selection());
    objects.list().await.unwrap();
    twin.rotate_token("second");
    let refused = objects.list().await.unwrap_err().problem;
    assert!(matches!(&refused, StoreProblem::Denied { why } if why.contains("renew it")), "{refused}");
    objects.list().await.unwrap();
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
async fn outside_a_pod_the_fix_is_a_kubeconfig() {
    let error = Credentials::Pod.client().await.err().unwrap().to_string();
    assert!(error.starts_with("cannot use the service account of this pod: "), "{error}");
    assert!(error.contains("kubeconfig"), "{error}");
}

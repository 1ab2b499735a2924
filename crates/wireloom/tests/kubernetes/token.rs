//! Tokens that expire while agents run. It takes 12 minutes.

use std::{fs, thread, time::Duration};

use wireloom_lab::ClusterLayout;

use crate::{
    fixtures::{WithWireloom, change_key},
    pings::{Pings, start_pods},
};

/// The shortest life of a token that the API server grants, in seconds, and the token as the agent's container sees it.
const TOKEN_LIFE: u64 = 600;
const TOKEN: &str = r#"
- {op: replace, path: /spec/template/spec/automountServiceAccountToken, value: false}
- op: add
  path: /spec/template/spec/containers/0/volumeMounts/-
  value: {name: token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
- op: add
  path: /spec/template/spec/volumes/-
  value:
    name: token
    projected:
      sources:
        - serviceAccountToken: {path: token, expirationSeconds: 600}
        - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
        - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
"#;

#[test]
fn a_token_rotates() {
    let WithWireloom { cluster, daemon_set } =
        WithWireloom::new(&ClusterLayout { nodes: 3, ..ClusterLayout::default() });
    start_pods(&cluster, cluster.nodes());
    let patch = cluster.directory().join("token.yaml");
    fs::write(&patch, TOKEN).unwrap();
    let line = "--namespace wireloom patch daemonset wireloom --type json --patch-file";
    cluster.kubectl(&format!("{line} {}", patch.display())).unwrap();
    daemon_set.wait(&cluster).unwrap();
    daemon_set.wait_for_proofs(&cluster).unwrap();
    // The first token is worth nothing any more after this, and the API server ends no watch before. A pinger counts
    // to 65,535, which is not enough for 11 minutes.
    for half in ["first", "second"] {
        let pings = Pings::start(&cluster);
        thread::sleep(Duration::from_secs(TOKEN_LIFE + 60) / 2);
        pings.wait_for_answers();
        let cost = pings.stop();
        println!("figure: over the life of a token, {half} half: {cost}");
        assert_eq!((cost.lost, cost.plaintext), (0, 0), "{cost}");
    }
    change_key(&cluster, &daemon_set);
}

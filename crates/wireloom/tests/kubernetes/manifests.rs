//! What `deploy/kubernetes` and the Helm chart install, and whom the admission policy refuses. One node, no agents.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use wireloom_lab::{Cluster, ClusterLayout, PATIENCE, copy_manifests, finish, until};

use crate::{
    fixtures::{WORKLOAD, root},
    metrics::POD_MONITORS,
};

/// The chart's values and the kustomization that say the same.
const VARIANTS: [(&str, &str); 5] = [
    ("", "resources: [base]"),
    (
        "--set image.repository=registry.example.com/wireloom --set image.tag=2",
        "resources: [base]\nimages: [{name: wireloom, newName: registry.example.com/wireloom, newTag: '2'}]",
    ),
    ("--set privileged=true", "resources: [base/overlays/privileged]"),
    (
        "--set bootGuard=false --set felixPeers=true",
        "resources: [base]\ncomponents: [base/components/without-boot-guard, base/components/felix-peers]",
    ),
    ("--set metrics.enabled=true", "resources: [base]\ncomponents: [base/components/metrics]"),
];

/// A record of `node`, as YAML and JSON alike.
fn record(node: &str) -> Value {
    json!({
        "apiVersion": "wireloom.io/v1alpha1",
        "kind": "WireloomNode",
        "metadata": { "name": node },
        "spec": { "endpoints": ["192.0.2.1:51820"] },
    })
}

fn status(node: &str) -> Value {
    json!({
        "apiVersion": "wireloom.io/v1alpha1",
        "kind": "WireloomNodeStatus",
        "metadata": { "name": node },
        "status": { "state": "Encrypted" },
    })
}

/// The cluster, a token of an agent on its only node `node-a`, and a second Node `elsewhere` that has no machine.
struct Stage {
    cluster: Cluster,
    token: String,
}

impl Stage {
    fn new() -> Self {
        let cluster =
            Cluster::new(&ClusterLayout { nodes: 1, ..ClusterLayout::default() }, &WORKLOAD).unwrap();
        let base = cluster.directory().join("manifests/base");
        copy_manifests(&base).unwrap();
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "elsewhere" } });
        cluster.apply(&node.to_string()).unwrap();
        cluster.kubectl(&format!("apply --kustomize {}", base.display())).unwrap();
        for kind in ["wireloomnodes", "wireloomnodestatuses"] {
            let line = format!("wait --for condition=Established crd/{kind}.wireloom.io --timeout 20s");
            cluster.kubectl(&line).unwrap();
        }
        // Pods as the DaemonSet makes them: no image is needed for a token.
        for node in ["node-a", "elsewhere"] {
            let pod = json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": { "name": format!("on-{node}"), "namespace": "wireloom" },
                "spec": {
                    "nodeName": node,
                    "serviceAccountName": "wireloom",
                    "automountServiceAccountToken": true,
                    "containers": [{ "name": "c", "image": "none", "imagePullPolicy": "Never" }],
                },
            });
            cluster.apply(&pod.to_string()).unwrap();
        }
        let token = cluster.as_kubelet(0, &token_request(&cluster, "node-a")).unwrap().trim().to_owned();
        Self { cluster, token }
    }

    /// Runs kubectl as the agent on `node-a`, with this object as its input.
    fn agent(&self, line: &str, object: &Value) -> Result<String, String> {
        let answer = self.cluster.with_token(&self.token, line, &object.to_string());
        answer.map_err(|error| format!("{error:?}"))
    }

    fn admin(&self, line: &str, object: &Value) -> Result<String, String> {
        let answer = self.cluster.feed_kubectl(line, &object.to_string());
        answer.map_err(|error| format!("{error:?}"))
    }

    /// The objects that a command line of kubectl or helm renders, in the order of kinds and names.
    fn objects(&self, yaml: &str) -> Vec<Value> {
        let line = "create --dry-run=client --validate=false --output json --filename -";
        let output = self.cluster.feed_kubectl(line, yaml).unwrap();
        // One object after the other.
        let objects = serde_json::Deserializer::from_str(&output).into_iter::<Value>();
        let mut objects: Vec<_> = objects.map(|object| normal(object.unwrap())).collect();
        objects.sort_by_key(|object| {
            (object["kind"].as_str().unwrap().to_owned(), object["metadata"]["name"].to_string())
        });
        objects
    }
}

/// The object without what makes no difference: Helm installs kinds as they are in a file, and gives them no labels;
/// kustomize leaves an empty list where it deletes the last init container.
fn normal(mut object: Value) -> Value {
    if object["kind"] == "CustomResourceDefinition" {
        object["metadata"].as_object_mut().unwrap().remove("labels");
    }
    if let Some(pod) = object.pointer_mut("/spec/template/spec").and_then(Value::as_object_mut)
        && pod.get("initContainers") == Some(&json!([]))
    {
        pod.remove("initContainers");
    }
    object
}

/// The command line with which a kubelet gets a token for a pod.
fn token_request(cluster: &Cluster, node: &str) -> String {
    let pod = cluster.get(&format!("pod on-{node} --namespace wireloom")).unwrap();
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    format!(
        "create token wireloom --namespace wireloom --bound-object-kind Pod --bound-object-name on-{node} \
         --bound-object-uid {uid}"
    )
}

fn assert_refused(answer: &Result<String, String>, why: &str) {
    let error = answer.as_ref().expect_err("not refused");
    assert!(error.contains(why), "{error}");
}

#[test]
fn an_agent_writes_its_own_record_and_no_other() {
    let stage = Stage::new();
    helm_renders_what_kustomize_does(&stage);

    // Its own: made, changed, deleted.
    for object in [record("node-a"), status("node-a")] {
        stage.agent("create --filename -", &object).unwrap();
        stage.agent("replace --filename -", &object).unwrap();
        stage.agent("delete --filename -", &object).unwrap();
        stage.agent("create --filename -", &object).unwrap();
    }
    // Another node's: neither when it is there nor when it is not.
    let why = "only a pod on node elsewhere may write its record; this is system:serviceaccount:wireloom:wireloom on \
               node node-a";
    for object in [record("elsewhere"), status("elsewhere")] {
        assert_refused(&stage.agent("create --filename -", &object), why);
        stage.admin("create --filename -", &object).unwrap();
        let kind = object["kind"].as_str().unwrap();
        for line in ["replace --filename -", "delete --filename -"] {
            assert_refused(&stage.agent(line, &object), why);
        }
        let collection = if kind == "WireloomNode" { "wireloomnodes" } else { "wireloomnodestatuses" };
        let all = format!("delete --raw /apis/wireloom.io/v1alpha1/{collection}");
        assert_refused(&stage.agent(&all, &object), "cannot deletecollection");
    }
    // A token that names no node, as from `kubectl create token`.
    let unbound = stage.cluster.kubectl("create token wireloom --namespace wireloom").unwrap();
    let answer =
        stage.cluster.with_token(unbound.trim(), "replace --filename -", &record("node-a").to_string());
    let answer = answer.map_err(|error| format!("{error:?}"));
    assert_refused(&answer, "whose credentials name no node");
    // A kubelet gets no token for a pod of another node.
    let answer = stage
        .cluster
        .as_kubelet(0, &token_request(&stage.cluster, "elsewhere"))
        .map_err(|error| format!("{error:?}"));
    assert_refused(&answer, "forbidden");
    // Nor may an agent write Nodes, as long as it does not share the fleet with Felix.
    let annotate = |node: &str, annotation: &str| {
        stage.agent(&format!("annotate --overwrite node {node} {annotation}"), &Value::Null)
    };
    assert_refused(&annotate("node-a", "projectcalico.org/WireguardPublicKey=key"), "forbidden");
    let felix = stage.cluster.directory().join("manifests/base/components/felix-peers");
    for file in ["admission.yaml", "rbac.yaml"] {
        stage.cluster.kubectl(&format!("apply --filename {}", felix.join(file).display())).unwrap();
    }
    until(PATIENCE, "the policy on Nodes to be in force", || {
        let others = annotate("elsewhere", "projectcalico.org/WireguardPublicKey=key");
        others.err()?.contains("an agent may write annotations on its own Node only").then_some(())
    })
    .unwrap();
    annotate("node-a", "projectcalico.org/WireguardPublicKey=key").unwrap();
    annotate("node-a", "projectcalico.org/WireguardPublicKey-").unwrap();
    assert_refused(&annotate("node-a", "owner=me"), "the annotations of Calico's WireGuard only");
    for line in ["label node node-a role=etcd", "taint node node-a key=value:NoSchedule"] {
        assert_refused(&stage.agent(line, &Value::Null), "may not change a Node's labels, taints");
    }

    // The garbage collector may: a record goes with its Node.
    let uid = stage.cluster.get("node elsewhere").unwrap()["metadata"]["uid"].clone();
    let owner = json!({
        "apiVersion": "v1", "kind": "Node", "name": "elsewhere", "uid": uid, "blockOwnerDeletion": false,
    });
    for mut object in [record("elsewhere"), status("elsewhere")] {
        object["metadata"]["ownerReferences"] = json!([owner]);
        stage.admin("apply --filename -", &object).unwrap();
    }
    stage.cluster.kubectl("delete node elsewhere").unwrap();
    until(2 * PATIENCE, "records to go with their Node", || {
        let left = stage.cluster.kubectl("get wireloom --output name").ok()?;
        (!left.contains("elsewhere")).then_some(())
    })
    .unwrap();
}

fn helm_renders_what_kustomize_does(stage: &Stage) {
    stage.cluster.apply(POD_MONITORS).unwrap();
    let line = "wait --for condition=Established crd/podmonitors.monitoring.coreos.com --timeout 20s";
    stage.cluster.kubectl(line).unwrap();
    for (values, kustomization) in VARIANTS {
        let directory = stage.cluster.directory().join("manifests");
        fs::write(directory.join("kustomization.yaml"), kustomization).unwrap();
        let expected = stage.cluster.kubectl(&format!("kustomize {}", directory.display())).unwrap();
        let (rendered, expected) = (stage.objects(&helm(values)), stage.objects(&expected));
        let names = |objects: &[Value]| -> Vec<String> {
            objects
                .iter()
                .map(|object| format!("{} {}", object["kind"], object["metadata"]["name"]))
                .collect()
        };
        assert_eq!(names(&rendered), names(&expected), "{values}");
        for (rendered, expected) in rendered.iter().zip(&expected) {
            assert_eq!(rendered, expected, "{values}");
        }
    }
}

/// What the chart renders.
fn helm(values: &str) -> String {
    let chart = root().join("deploy/helm/wireloom");
    let mut helm = Command::new(root().join("scripts/helm"));
    helm.args(["template", "wireloom"]).arg(&chart).args(["--namespace", "wireloom", "--include-crds"]);
    helm.args(["--set", "createNamespace=true"]).args(values.split_whitespace());
    let helm = helm.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = finish(helm, "helm template", Duration::from_secs(300)).unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

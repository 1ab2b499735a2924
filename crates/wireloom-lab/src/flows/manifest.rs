//! The cast as Kubernetes objects.

use serde_json::{Value, json};

use super::cast::{
    HOST_PORT, NODES, Network, POD_PORT, PODS, Pod, SERVICE_PORT, SERVICES, Service, ServiceKind,
};
use crate::WORKLOAD_PROGRAM;

/// All pods and services as one `List` in JSON, for `kubectl apply --filename -`. `image` is the name and tag of an
/// image that every node has and that holds `wireloom-workload` as [`WORKLOAD_PROGRAM`].
#[must_use]
pub fn manifest(image: &str) -> String {
    let pods = PODS.iter().map(|pod| self::pod(pod, image));
    let items: Vec<_> = pods.chain(SERVICES.iter().map(service)).collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

fn pod(pod: &Pod, image: &str) -> Value {
    let ports = both_protocols(|| match pod.network {
        Network::OwnAndHostPort => json!({"containerPort": pod.port(), "hostPort": HOST_PORT}),
        Network::Own | Network::Host => json!({"containerPort": pod.port()}),
    });
    let mut labels = json!({"app": "wireloom-flows"});
    for service in SERVICES.iter().filter(|service| service.pods.contains(&pod.name)) {
        labels[label(service)] = "yes".into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "labels": labels},
        "spec": {
            "nodeName": NODES[pod.node],
            "hostNetwork": !pod.has_addresses(),
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "workload",
                "image": image,
                "imagePullPolicy": "Never",
                "command": [WORKLOAD_PROGRAM, pod.name, pod.port().to_string()],
                "ports": ports,
            }],
        },
    })
}

fn service(service: &Service) -> Value {
    let mut spec = json!({
        "ipFamilyPolicy": "PreferDualStack",
        "selector": {label(service): "yes"},
        "ports": both_protocols(|| json!({"port": SERVICE_PORT, "targetPort": POD_PORT})),
    });
    match service.kind {
        ServiceKind::ClusterIp => {}
        ServiceKind::Sticky => spec["sessionAffinity"] = "ClientIP".into(),
        ServiceKind::Headless => spec["clusterIP"] = "None".into(),
        ServiceKind::NodePort(port) | ServiceKind::LocalNodePort(port) => {
            let local = matches!(service.kind, ServiceKind::LocalNodePort(_));
            spec["type"] = "NodePort".into();
            spec["externalTrafficPolicy"] = if local { "Local" } else { "Cluster" }.into();
            for entry in spec["ports"].as_array_mut().into_iter().flatten() {
                entry["nodePort"] = port.into();
            }
        }
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": service.name}, "spec": spec})
}

/// The label that a service's endpoints have: a pod can be an endpoint of several services.
fn label(service: &Service) -> String {
    format!("wireloom-flows/{}", service.name)
}

/// A port's entry once for TCP and once for UDP, with a name, which Kubernetes demands of several.
fn both_protocols(entry: impl Fn() -> Value) -> Vec<Value> {
    let with_protocol = |protocol: &str| {
        let mut entry = entry();
        entry["protocol"] = protocol.into();
        entry["name"] = protocol.to_lowercase().into();
        entry
    };
    ["TCP", "UDP"].map(with_protocol).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn items() -> Vec<Value> {
        let list: Value = serde_json::from_str(&manifest("registry.local/workload:1")).unwrap();
        assert_eq!(list["kind"], "List");
        list["items"].as_array().unwrap().clone()
    }

    fn of_kind(kind: &str) -> impl Iterator<Item = Value> {
        items().into_iter().filter(move |item| item["kind"] == kind)
    }

    #[test]
    fn names_and_node_ports_are_unique() {
        let names: BTreeSet<_> = items().iter().map(|item| item["metadata"]["name"].to_string()).collect();
        assert_eq!(names.len(), PODS.len() + SERVICES.len());
        let ports: Vec<_> = of_kind("Service")
            .flat_map(|service| service["spec"]["ports"].as_array().unwrap().clone())
            .filter_map(|port| Some((port["nodePort"].as_u64()?, port["protocol"].to_string())))
            .collect();
        assert_eq!(ports.len(), 3 * 2);
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len());
        assert!(ports.iter().all(|(port, _)| (30000..32768).contains(port)), "{ports:?}");
    }

    #[test]
    fn every_selector_finds_its_endpoints() {
        let pods: Vec<_> = of_kind("Pod").collect();
        for (service, cast) in of_kind("Service").zip(SERVICES) {
            let selector = service["spec"]["selector"].as_object().unwrap();
            let selected = pods.iter().filter(|pod| {
                selector.iter().all(|(label, value)| pod["metadata"]["labels"][label] == *value)
            });
            let names: Vec<_> = selected.map(|pod| pod["metadata"]["name"].as_str().unwrap()).collect();
            assert_eq!(names, cast.pods, "{}", cast.name);
        }
    }

    #[test]
    fn a_pod_is_told_its_name_and_its_port() {
        let server = of_kind("Pod").find(|pod| pod["metadata"]["name"] == "server-b").unwrap();
        assert_eq!(server["spec"]["nodeName"], "node-b");
        assert_eq!(server["spec"]["hostNetwork"], true);
        let container = &server["spec"]["containers"][0];
        assert_eq!(container["image"], "registry.local/workload:1");
        assert_eq!(container["command"], json!([WORKLOAD_PROGRAM, "server-b", "9080"]));
        assert_eq!(container["ports"][1]["protocol"], "UDP");
    }
}

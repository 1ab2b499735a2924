//! The schemas in `deploy/kubernetes/crds`, and what we write.

use kube::config::Kubeconfig;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::sleep};
use wireloom_plan::cluster::Node;

use super::{
    super::{
        Report,
        twin::{STATUSES, Twin},
    },
    reporter::reporter,
    twin_with_node,
};
use crate::record::{self, Spelling};

const NODES: &str = include_str!("../../../../../deploy/kubernetes/crds/wireloomnodes.yaml");
const STATUS: &str = include_str!("../../../../../deploy/kubernetes/crds/wireloomnodestatuses.yaml");

/// The schema of a kind. The library's kubeconfig is our reader of YAML: it keeps the fields that it does not know.
fn schema(crd: &str) -> Value {
    let crd = json!(Kubeconfig::from_yaml(crd).unwrap().other);
    assert_eq!(crd["spec"]["scope"], "Cluster");
    let versions = crd["spec"]["versions"].as_array().unwrap();
    assert_eq!(versions.len(), 1);
    versions[0]["schema"]["openAPIV3Schema"].clone()
}

/// What is wrong with a value by a schema, as far as types, bounds, enumerations and known fields go.
fn mistakes(schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let number = |field: &str| schema[field].as_u64().map(|number| number as usize);
    let mut mistakes = Vec::new();
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if schema["type"] != kind {
        return vec![format!("{at} is of the type {kind}, not {}", schema["type"])];
    }
    match value {
        Value::String(text) => {
            if number("maxLength").is_some_and(|most| text.chars().count() > most) {
                mistakes.push(format!("{at} is too long"));
            }
            if schema["enum"].as_array().is_some_and(|values| !values.contains(value)) {
                mistakes.push(format!("{at} is none of {}", schema["enum"]));
            }
        }
        Value::Array(items) => {
            if number("maxItems").is_none_or(|most| items.len() > most) {
                mistakes.push(format!("{at} has too many items"));
            }
            for (place, item) in items.iter().enumerate() {
                mistakes.extend(self::mistakes(&schema["items"], item, &format!("{at}[{place}]")));
            }
        }
        Value::Object(fields) => {
            for (field, value) in fields {
                match schema["properties"].get(field) {
                    Some(schema) => mistakes.extend(self::mistakes(schema, value, &format!("{at}.{field}"))),
                    None => mistakes.push(format!("{at}.{field} would be pruned")),
                }
            }
            for field in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !fields.contains_key(field) {
                    mistakes.push(format!("{at}.{field} is missing"));
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    mistakes
}

#[test]
fn the_schema_takes_the_records_that_readers_take() {
    let schema = schema(NODES);
    let full = Node {
        public_key: Some(wireloom_types::PublicKey::from_bytes([7; 32])),
        endpoint: Some("[2001:db8:1111:2222:3333:4444:5555:6666]:51820".parse().unwrap()),
        other_endpoints: (1..8).map(|number| ([192, 0, 2, number], 51820).into()).collect(),
        addresses: (0..128).map(|number| [192, 0, 2, number].into()).collect(),
        workloads: (0..=255).map(|number| format!("10.1.{number}.0/24").parse().unwrap()).collect(),
        link_addresses: (0..128).map(|number| [100, 64, 0, number].into()).collect(),
        tunnel_addresses: (0..128).map(|number| [10, 1, 0, number].into()).collect(),
        encrypt: false,
        ..Node::default()
    };
    for node in [full, Node::default()] {
        let spec: Value = serde_json::from_str(&record::write(&node, Spelling::Camel)).unwrap();
        assert_eq!(mistakes(&schema, &json!({"spec": spec}), ""), Vec::<String>::new());
        assert_eq!(record::read(&spec.to_string()).unwrap(), node);
    }
    // What the bounds are for. (Formats and patterns are tried on a real server.)
    let huge =
        json!({"spec": {"endpoints": vec!["192.0.2.1:1"; 9], "publicKey": "A".repeat(45), "fields": 1}});
    assert_eq!(
        mistakes(&schema, &huge, ""),
        [".spec.endpoints has too many items", ".spec.fields would be pruned", ".spec.publicKey is too long",]
    );
}

#[tokio::test(start_paused = true)]
async fn the_schema_takes_whatever_is_reported() {
    let twin: Twin = twin_with_node();
    let reports: mpsc::UnboundedSender<Report> = reporter(&twin).await;
    let long = "ä".repeat(5000);
    let (state, version) = (long.clone(), long.clone());
    let warnings = vec![long.clone(); 100];
    reports.send(Report { state, version, message: long, peers: (5000, 5000), warnings }).unwrap();
    while twin.get(STATUSES, "n1").is_none() {
        sleep(std::time::Duration::from_millis(10)).await;
    }
    let mut status = twin.get(STATUSES, "n1").unwrap();
    status.as_object_mut().unwrap().retain(|field, _| field == "status");
    assert_eq!(mistakes(&schema(STATUS), &status, ""), Vec::<String>::new());
}

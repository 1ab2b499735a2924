//! The own `WireloomNode`.

use super::{
    super::{
        Workloads,
        collection::Objects,
        own_node::{self, OwnNodeHandler, Owner},
        own_record::OwnWireloomNode,
        twin::{NODES, RECORDS, Twin, node},
    },
    server, twin_with_node,
};
use crate::{
    calico::Own,
    knowledge::{Handler, Knowledge},
    mesh::Mesh,
    publishing::Publishing,
    record::Spelling,
    store::{Collection, OwnRecord, StoreProblem},
};

const RECORD: &str = r#"{"workloads":["10.1.1.0/24"],"encrypt":true}"#;

pub(super) fn knowledge() -> Knowledge {
    let publishing = Publishing::new(Spelling::Camel, 0);
    Knowledge::new("n1", Mesh::new(None), publishing, std::time::Instant::now())
}

/// Shows the handler the own Node as the twin has it now.
async fn look(twin: &Twin, handler: &mut OwnNodeHandler, knowledge: &mut Knowledge) {
    let listed = Objects::new(server(twin), own_node::selection("n1")).list().await.unwrap();
    handler.whole(listed.objects, knowledge);
}

#[tokio::test]
async fn the_record_is_owned_by_the_node_and_says_nothing_about_who_wrote_it() {
    let twin = twin_with_node();
    let owner = Owner::default();
    let mut own = OwnWireloomNode::new(server(&twin), "n1", owner.clone());
    let refused = own.put(RECORD.into()).await.unwrap_err();
    assert!(refused.to_string().contains("there is no Node \"n1\""), "{refused}");
    assert_eq!(twin.get(RECORDS, "n1"), None);

    let mut handler = OwnNodeHandler::new("n1", owner, Own::new(Workloads::PodCidrs));
    look(&twin, &mut handler, &mut knowledge()).await;
    own.put(RECORD.into()).await.unwrap();
    let record = twin.get(RECORDS, "n1").unwrap();
    assert_eq!(record["spec"].to_string(), r#"{"encrypt":true,"workloads":["10.1.1.0/24"]}"#);
    assert_eq!(
        record["metadata"]["ownerReferences"].to_string(),
        r#"[{"apiVersion":"v1","blockOwnerDeletion":false,"kind":"Node","name":"n1","uid":"uid-1"}]"#
    );
    assert!(record["metadata"].get("managedFields").is_none(), "{record}");

    let requests = twin.take_requests();
    own.put(r#"{"encrypt":false}"#.into()).await.unwrap();
    assert_eq!(twin.get(RECORDS, "n1").unwrap()["spec"].to_string(), r#"{"encrypt":false}"#);
    assert_eq!(twin.take_requests().len(), 2, "a change is a read and a write; before: {requests:?}");

    own.delete().await.unwrap();
    own.delete().await.unwrap();
    assert_eq!(twin.get(RECORDS, "n1"), None);
}

#[tokio::test]
async fn a_node_that_was_added_again_owns_the_record_anew() {
    let twin = twin_with_node();
    let (owner, mut knowledge) = (Owner::default(), knowledge());
    let mut handler = OwnNodeHandler::new("n1", owner.clone(), Own::new(Workloads::PodCidrs));
    let mut own = OwnWireloomNode::new(server(&twin), "n1", owner.clone());
    look(&twin, &mut handler, &mut knowledge).await;
    own.put(RECORD.into()).await.unwrap();

    twin.remove(NODES, "n1");
    look(&twin, &mut handler, &mut knowledge).await;
    assert!(matches!(own.put(RECORD.into()).await.unwrap_err().problem, StoreProblem::Unavailable { .. }));
    let workloads = knowledge.known_local().unwrap().workloads.clone();
    assert_eq!(workloads, Some(["10.1.1.0/24".parse().unwrap()].into()), "what it said stays in force");

    twin.put(NODES, node("n1", &[], &["192.0.2.7"]));
    look(&twin, &mut handler, &mut knowledge).await;
    own.put(RECORD.into()).await.unwrap();
    let record = twin.get(RECORDS, "n1").unwrap();
    assert_eq!(
        record["metadata"]["ownerReferences"][0]["uid"],
        twin.get(NODES, "n1").unwrap()["metadata"]["uid"]
    );
    assert_eq!(knowledge.known_local().unwrap().workloads, workloads, "an empty list is waited for");

    twin.put(NODES, node("n1", &["10.1.9.0/24", "fd61:0:0:9::/64"], &["192.0.2.7", "2001:db8::7"]));
    look(&twin, &mut handler, &mut knowledge).await;
    let local = knowledge.known_local().unwrap();
    let expected = ["10.1.9.0/24".parse().unwrap(), "fd61:0:0:9::/64".parse().unwrap()].into();
    assert_eq!(local.workloads, Some(expected));
    assert_eq!(local.addresses, ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()].into());
}

#[tokio::test]
async fn what_a_node_says_wrongly_is_complained_about() {
    let twin = Twin::start();
    twin.put(NODES, node("n1", &["10.1.1.7/24", "10.1.2.0/24"], &["192.0.2.300", "192.0.2.1"]));
    let mut knowledge = knowledge();
    let mut handler = OwnNodeHandler::new("n1", Owner::default(), Own::new(Workloads::PodCidrs));
    look(&twin, &mut handler, &mut knowledge).await;
    let complaints: Vec<String> = knowledge.complaints().map(ToString::to_string).collect();
    assert_eq!(complaints.len(), 2);
    assert!(complaints[0].contains("\"10.1.1.7/24\" has host bits set"), "{complaints:?}");
    assert!(complaints[1].contains("192.0.2.300"), "{complaints:?}");
    let local = knowledge.known_local().unwrap();
    assert_eq!(local.workloads, Some(["10.1.2.0/24".parse().unwrap()].into()));
}

//! This node's own `WireloomNode`: named like the node, and owned by its Node, so that it goes with it.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use serde_json::{Value, json};

use super::{
    collection::Selection,
    own_node::{OwnNode, Owner},
    server::{ApiServer, Call},
};
use crate::store::{OwnRecord, StoreError, StoreProblem};

/// Where `WireloomNode`s are.
pub(super) const PATH: &str = "/apis/wireloom.io/v1alpha1/wireloomnodes";

/// All records.
pub(super) fn selection() -> Selection {
    Selection {
        name: "the WireloomNodes".into(),
        path: PATH.into(),
        labels: None,
        fields: None,
        metadata_only: false,
        keep: |mut object| object.get_mut("spec").map(Value::take).unwrap_or_default(),
    }
}

/// The own record at a server.
pub(super) struct OwnWireloomNode {
    server: Arc<ApiServer>,
    node: String,
    owner: Owner,
}

impl OwnWireloomNode {
    pub(super) fn new(server: Arc<ApiServer>, node: &str, owner: Owner) -> Self {
        Self { server, node: node.to_owned(), owner }
    }

    async fn write(&self, value: &str) -> Result<(), StoreError> {
        let operation = format!("write the WireloomNode {:?}", self.node);
        let fail = |problem| StoreError { operation: operation.clone(), problem };
        let spec: Value = serde_json::from_str(value).map_err(|error| {
            fail(StoreProblem::Nonsense { why: format!("the record is no JSON ({error})") })
        })?;
        let Some(owner) = self.owner.get() else {
            let why =
                format!("there is no Node {:?} that would own it; `node` must be the Node's name", self.node);
            return Err(fail(StoreProblem::Unavailable { why, retry_after: None }));
        };
        let mut object = object(&self.node, &owner, &spec);
        let mut found =
            self.server.get(PATH, &self.node, &format!("read the WireloomNode {:?}", self.node)).await?;
        if found.is_none() {
            let made = self.server.ask(PATH, Call::Create(&object), &operation).await?;
            if !manages_fields(&made) {
                return Ok(());
            }
            found = Some(made);
        }
        // Nobody may have written in between: what he wrote, we have not seen.
        object["metadata"]["resourceVersion"] = found
            .as_ref()
            .and_then(|found| found.pointer("/metadata/resourceVersion"))
            .cloned()
            .unwrap_or_default();
        // This empty entry makes the server forget who wrote which field. Every agent would read it with the record,
        // and it is half as long again as that.
        object["metadata"]["managedFields"] = json!([{}]);
        self.server.ask(PATH, Call::Replace(&self.node, &object), &operation).await.map(drop)
    }
}

impl OwnRecord for OwnWireloomNode {
    fn put(&mut self, value: String) -> BoxFuture<'_, Result<(), StoreError>> {
        async move { self.write(&value).await }.boxed()
    }

    fn delete(&mut self) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            let what = format!("delete the WireloomNode {:?}", self.node);
            self.server.delete(PATH, &self.node, &what).await
        }
        .boxed()
    }
}

fn object(node: &str, owner: &OwnNode, spec: &Value) -> Value {
    json!({
        "apiVersion": "wireloom.io/v1alpha1",
        "kind": "WireloomNode",
        "metadata": {"name": node, "ownerReferences": [owner_reference(node, owner)]},
        "spec": spec,
    })
}

/// The reference to the Node that owns an object: with it gone, the object is collected.
pub(super) fn owner_reference(node: &str, owner: &OwnNode) -> Value {
    // Nobody waits for our objects before he deletes a Node, and we need no right to hold it up.
    json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": owner.uid, "blockOwnerDeletion": false})
}

fn manages_fields(object: &Value) -> bool {
    object
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array)
        .is_some_and(|fields| !fields.is_empty())
}

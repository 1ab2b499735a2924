//! Metrics of agents, with the component `metrics` of `deploy/kubernetes`.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use wireloom_lab::{Cluster, FAMILIES, Node, PATIENCE, until};

/// The kind that the Prometheus operator brings, without its schema.
pub(crate) const POD_MONITORS: &str = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: podmonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  names: {kind: PodMonitor, listKind: PodMonitorList, plural: podmonitors, singular: podmonitor}
  scope: Namespaced
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

/// The port of the component.
const PORT: u16 = 9586;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Every node reads the metrics of the next one at that node's address, and they say that all is encrypted.
pub(crate) fn assert_metrics(cluster: &Cluster) {
    let nodes = cluster.nodes();
    for (from, to) in nodes.iter().zip(nodes.iter().cycle().skip(1)) {
        // The component listens at the address that Kubernetes gives as the node's first.
        let address = SocketAddr::new(to.host.addresses.of(FAMILIES[0]), PORT);
        let mut answer = Ok(String::new());
        let said = until(PATIENCE, &format!("{} to say that it encrypts", to.name), || {
            answer = scrape(from, address);
            let encrypted = format!("wireloom_nodes{{traffic=\"encrypted\"}} {}\n", nodes.len() - 1);
            let said = answer.as_ref().ok()?;
            ["HTTP/1.1 200", "wireloom_ready 1\n", &encrypted]
                .iter()
                .all(|it| said.contains(it))
                .then_some(())
        });
        assert!(said.is_ok(), "{} reads of {}: {answer:?}", from.name, to.name);
        let answer = answer.unwrap();
        println!("figure: {} bytes of metrics with {} nodes", answer.len(), nodes.len());
        assert_eq!(
            answer.matches("\nwireguard_latest_handshake_seconds{").count(),
            nodes.len() - 1,
            "{answer}"
        );
    }
}

fn scrape(from: &Node, address: SocketAddr) -> io::Result<String> {
    let read = || {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    from.host.space.inside(read).unwrap()
}

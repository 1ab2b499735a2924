//! The cluster itself.

use std::{fs, path::Path};

use wireloom_lab::{Cluster, ClusterLayout};

use crate::fixtures::WORKLOAD;

#[test]
fn a_cluster_comes_and_goes_without_a_trace() {
    let cluster = Cluster::new(&ClusterLayout::default(), &WORKLOAD).unwrap();
    let directory = cluster.directory().to_owned();
    let group = directory.file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(groups(&group).len(), 2, "one for each node");
    drop(cluster);
    assert!(!directory.exists());
    assert_eq!(groups(&group), Vec::<String>::new());
}

/// The control groups whose names begin like this, of the hierarchy that limits numbers of processes.
fn groups(beginning: &str) -> Vec<String> {
    let hierarchy =
        ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new).into_iter().find(|path| path.exists());
    let names = fs::read_dir(hierarchy.unwrap()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(beginning)).collect()
}

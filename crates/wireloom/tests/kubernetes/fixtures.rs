//! What the tests are made of: programs, images, and a cluster with Wireloom on it.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
};

use wireloom_lab::{
    Cluster, ClusterLayout, DaemonSet, PATIENCE,
    mesh::{KeyPair, write_key},
    until,
};

/// Two tags of Wireloom's image, so that one can be rolled out over the other.
pub(crate) const TAGS: [&str; 2] = ["1", "2"];

/// The boot unit on a node.
pub(crate) const BOOT_UNIT: &str = "/etc/systemd/system/wireloom-guard.service";

/// The program `wireloom` of this build, which makes keys. What runs on the nodes is in the image.
pub(crate) fn wireloom() -> PathBuf {
    env!("CARGO_BIN_EXE_wireloom").into()
}

/// The tree.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A program of the laboratory, beside `wireloom`. It belongs to another package, so cargo does not build it for these
/// tests: they do, with the dependencies of the whole workspace, which are compiled already.
pub(crate) fn laboratory_program(name: &str) -> PathBuf {
    run(Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--workspace", "--bin", name])
        .current_dir(root()));
    wireloom().with_file_name(name)
}

/// The program of test pods.
pub(crate) static WORKLOAD: LazyLock<PathBuf> = LazyLock::new(|| laboratory_program("wireloom-workload"));

/// The archives of Wireloom's image, one for each of [`TAGS`], as users make them.
pub(crate) static IMAGES: LazyLock<[PathBuf; 2]> = LazyLock::new(|| TAGS.map(image));

/// Makes the archive of Wireloom's image with this tag.
pub(crate) fn image(tag: &str) -> PathBuf {
    let archive = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("wireloom-{tag}.tar"));
    build_image(tag, &archive);
    archive
}

pub(crate) fn build_image(tag: &str, archive: &Path) {
    let mut build = Command::new(root().join("deploy/image/build"));
    run(build.arg(format!("wireloom:{tag}")).arg(archive));
}

fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// A cluster with Wireloom on every node, in scoped mode, where all nodes have proved themselves.
pub(crate) struct WithWireloom {
    pub(crate) cluster: Cluster,
    pub(crate) daemon_set: DaemonSet,
}

impl WithWireloom {
    pub(crate) fn new(layout: &ClusterLayout) -> Self {
        let cluster = Cluster::new(layout, &WORKLOAD).unwrap();
        for image in &*IMAGES {
            cluster.import(image).unwrap();
        }
        let daemon_set = DaemonSet::install(&cluster, TAGS[0]).unwrap();
        daemon_set.wait_for_proofs(&cluster).unwrap();
        Self { cluster, daemon_set }
    }
}

/// Gives one node a new key, and waits until all others have heard of it and proved it. So they follow the store.
pub(crate) fn change_key(cluster: &Cluster, daemon_set: &DaemonSet) {
    let (_, node) = cluster.members().next().unwrap();
    let key = KeyPair::generate(&wireloom(), node).unwrap();
    write_key(node, &key).unwrap();
    for (n, other) in cluster.members().skip(1) {
        until(2 * PATIENCE, &format!("{} to hear of the new key", other.name), || {
            let status = daemon_set.status(cluster, n).ok()?;
            status.to_string().contains(&key.public).then_some(())
        })
        .unwrap();
    }
    daemon_set.wait_for_proofs(cluster).unwrap();
}

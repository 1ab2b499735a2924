//! The configurations that `docs/link-mode.md` shows, word for word: the tests run what users copy.
//! Each belongs on the first router of a [`Link`](crate::Link), unless it says otherwise.

macro_rules! guide {
    ($($(#[$meaning:meta])* $name:ident = $file:literal;)*) => {
        $($(#[$meaning])* pub const $name: &str = include_str!(concat!("../../../../docs/link-mode/", $file));)*

        /// All of them: file names and contents.
        pub const ALL: &[(&str, &str)] = &[$(($file, $name)),*];
    };
}

guide! {
    /// Shell commands that make the device by hand.
    INTERFACE = "interface.sh";
    /// The device's key and peers, for `wg setconf`.
    PEERS = "wg0.conf";
    /// nftables rules that check source addresses.
    SOURCE_CHECK = "source-check.nft";
    /// OSPFv2 and OSPFv3 with BIRD.
    BIRD_OSPF = "bird-ospf.conf";
    /// OSPF with BIRD on the hub of [`Topology::Hub`](crate::Topology::Hub).
    BIRD_OSPF_HUB = "bird-ospf-hub.conf";
    /// OSPF with BIRD on a spoke of [`Topology::Hub`](crate::Topology::Hub).
    BIRD_OSPF_SPOKE = "bird-ospf-spoke.conf";
    /// BGP with BIRD: IPv4 routes with IPv6 next hops.
    BIRD_BGP = "bird-bgp.conf";
    /// OSPFv2 and OSPFv3 with FRR.
    FRR_OSPF = "frr-ospf.conf";
    /// OSPFv2 with FRR on the routers of [`Topology::Hub`](crate::Topology::Hub), the hub and the spokes.
    FRR_OSPF_HUB = "frr-ospf-hub.conf";
    /// BGP with FRR: IPv4 routes with IPv6 next hops.
    FRR_BGP = "frr-bgp.conf";
    /// Babel with babeld.
    BABELD = "babeld.conf";
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn the_guide_shows_the_configurations_that_the_tests_run() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        let guide = fs::read_to_string(docs.join("link-mode.md")).unwrap();
        for (file, text) in ALL {
            let shown = format!("`{file}`:\n\n```\n{text}```\n");
            assert!(guide.contains(&shown), "docs/link-mode.md does not show {file} word for word");
        }
        let files = fs::read_dir(docs.join("link-mode")).unwrap();
        let files: BTreeSet<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        let known: BTreeSet<_> = ALL.iter().map(|(file, _)| (*file).to_owned()).collect();
        assert_eq!(files, known);
        // The guide's code blocks are the files and one picture, nothing else.
        assert_eq!(guide.matches("\n```\n").count(), 2 * (ALL.len() + 1));
    }
}

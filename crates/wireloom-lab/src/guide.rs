//! The configurations that `docs/link-mode.md` shows, word for word: what runs here is what users copy.
//! They are those of a [`Link`](super::Link)'s first router, unless they say otherwise.

macro_rules! guide {
    ($($(#[$meaning:meta])* $name:ident = $file:literal;)*) => {
        $($(#[$meaning])* pub const $name: &str = include_str!(concat!("../../../docs/link-mode/", $file));)*

        /// All of them, by their files' names.
        pub const ALL: &[(&str, &str)] = &[$(($file, $name)),*];
    };
}

guide! {
    /// The device by hand, for a shell.
    INTERFACE = "interface.sh";
    /// Its key and peers, for `wg setconf`.
    PEERS = "wg0.conf";
    /// The firewall's check of sources.
    SOURCE_CHECK = "source-check.nft";
    /// OSPF v2 and v3 by BIRD.
    BIRD_OSPF = "bird-ospf.conf";
    /// OSPF by BIRD where the first router is everybody's only neighbour: there.
    BIRD_OSPF_HUB = "bird-ospf-hub.conf";
    /// The same, on the other routers.
    BIRD_OSPF_SPOKE = "bird-ospf-spoke.conf";
    /// BGP by BIRD, IPv4 by IPv6 next hops.
    BIRD_BGP = "bird-bgp.conf";
    /// OSPF v2 and v3 by FRR.
    FRR_OSPF = "frr-ospf.conf";
    /// BGP by FRR, IPv4 by IPv6 next hops.
    FRR_BGP = "frr-bgp.conf";
    /// babeld.
    BABELD = "babeld.conf";
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn the_guide_shows_what_runs() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        let guide = fs::read_to_string(docs.join("link-mode.md")).unwrap();
        for (file, text) in ALL {
            let shown = format!("`{file}`:\n\n```\n{text}```\n");
            assert!(guide.contains(&shown), "docs/link-mode.md does not show {file} as it is");
        }
        let files = fs::read_dir(docs.join("link-mode")).unwrap();
        let files: BTreeSet<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        let known: BTreeSet<_> = ALL.iter().map(|(file, _)| (*file).to_owned()).collect();
        assert_eq!(files, known);
        // All that the guide has in a frame: those, and the picture.
        assert_eq!(guide.matches("\n```\n").count(), 2 * (ALL.len() + 1));
    }
}

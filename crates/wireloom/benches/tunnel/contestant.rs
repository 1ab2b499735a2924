//! The programs that are measured.

use std::str::FromStr;

use crate::program::Program;

/// A program: its name in the table, and how it makes an interface.
#[derive(Debug, Clone)]
pub(crate) struct Contestant {
    pub(crate) name: String,
    /// The command that makes an interface when the interface's name is added. Absent: the bare cable.
    pub(crate) command: Option<String>,
}

/// The bare cable: what the machine can do, and what the load itself costs.
const CABLE: &str = "veth";
/// The program that the others are compared with.
pub(crate) const OURS: &str = "wireloom";
/// The same program in link mode: peers are neighbours, on a TAP interface.
const LINK: &str = "wireloom link";

impl Contestant {
    pub(crate) fn own() -> [Self; 3] {
        let wireloom = env!("CARGO_BIN_EXE_wireloom");
        let link = "--peer-lookup gateway --source-check off";
        [(CABLE, None), (OURS, Some("device".to_owned())), (LINK, Some(format!("device {link}")))].map(
            |(name, arguments)| Self {
                name: name.to_owned(),
                command: arguments.map(|arguments| format!("{wireloom} {arguments}")),
            },
        )
    }

    /// Whether the table compares its figures with ours.
    pub(crate) fn is_compared(name: &str) -> bool {
        ![CABLE, OURS].contains(&name)
    }
}

impl FromStr for Contestant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Program { name, command } = text.parse()?;
        if [CABLE, OURS, LINK].contains(&name.as_str()) {
            return Err(format!("the name {name:?} is taken"));
        }
        Ok(Self { name, command: Some(command) })
    }
}

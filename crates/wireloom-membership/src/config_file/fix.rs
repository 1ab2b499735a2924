//! What to do about a mistake that the TOML parser or serde reports: their messages say what is wrong only.

/// The message as a user reads it, who does not know the types of Rust.
pub(super) fn reword(message: &str) -> String {
    let mut reworded = message.replace('\n', "; ").replace(", expected nothing", "");
    for number in ["i64", "u16", "u32"] {
        reworded = reworded.replace(&format!(", expected {number}"), ", expected a whole number");
    }
    reworded
}

/// The fix for a mistake with this reworded message. The messages are those of the crates `toml` and `serde`; a new
/// version may word them differently, and then the general advice follows.
pub(super) fn fix(message: &str) -> &'static str {
    let found = FIXES.iter().find(|(parts, _)| parts.iter().all(|part| message.contains(part)));
    found.map_or(GENERAL, |(_, fix)| fix)
}

const GENERAL: &str = "a line is `key = value`, with text in quotes and lists in brackets";

/// Parts of a message, all of which it must contain, and the fix. The first that fits counts.
const FIXES: [(&[&str], &str); 28] = [
    (&["unknown field"], "remove it or fix its spelling"),
    (&["encrypt_host_traffic is"], "write one of these"),
    (&["missing field"], "add it to this table"),
    (&["unknown variant"], "write one of these, in quotes"),
    (&["duplicate key"], "keep one of the two"),
    (
        &["invalid type: map", "expected a sequence"],
        "write the table's name in two brackets, such as [[nodes]]",
    ),
    (
        &["invalid type: map", "expected a string"],
        "write text in quotes, such as node = \"NAME\", or a table's name in one bracket, such as [routing]",
    ),
    (&["expected a sequence"], "write a list in brackets, such as [\"192.0.2.1\"]"),
    (&["invalid type", "expected a boolean"], "write true or false, without quotes"),
    (&["invalid type: string", "expected a whole number"], "write the number without quotes"),
    (&["invalid type: floating point", "expected"], "write a whole number"),
    (&["invalid value: integer"], "write a number within these bounds"),
    (&["invalid float"], "write text in quotes, such as \"192.0.2.1\""),
    (&["keys cannot be empty"], "write the key before the `=`"),
    (&["invalid type", "expected a string"], "write the value in quotes"),
    (&["invalid type", "expected path string"], "write the path in quotes"),
    (&["key with no value"], "write `= value` after it, with text in quotes"),
    (&["string values must be quoted"], "write a value, text in quotes"),
    (&["opening quote"], "begin the text with a quotation mark"),
    (&["invalid basic string"], "end the text with a quotation mark, on the same line"),
    (&["unclosed array table"], "end the table's name with `]]`"),
    (&["unclosed array"], "end the list with `]`"),
    (&["unclosed table"], "end the table's name with `]`"),
    (&["missing comma"], "write a comma between two values"),
    (&["extra comma"], "remove one of the commas"),
    (&["extra", "="], "remove one of the two `=`"),
    (&["unexpected key or value"], "begin a new line, or remove what follows the value"),
    (&["leading zero"], "write the number without the zero in front"),
];

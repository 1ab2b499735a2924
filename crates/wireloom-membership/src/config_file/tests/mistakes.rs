use std::path::Path;

use serde::Deserialize;

use crate::config_file::TomlFile;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only parsed")]
struct File {
    on: Option<bool>,
    number: Option<u16>,
    list: Option<Vec<String>>,
    text: Option<String>,
    path: Option<std::path::PathBuf>,
    table: Option<Table>,
    tables: Option<Vec<Table>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only parsed")]
struct Table {
    name: String,
}

#[test]
fn each_mistake_of_syntax_or_type_names_its_line_and_the_fix() {
    let cases = [
        ("on = true\non = false", "a.toml:2: `on` is here for the second time; keep one of the two"),
        (
            "on = \"yes\"",
            "a.toml:1: invalid type: string \"yes\", expected a boolean; write true or false, without quotes",
        ),
        ("on", "a.toml:1: key with no value, expected `=`; write `= value` after it, with text in quotes"),
        (
            "on =",
            "a.toml:1: string values must be quoted, expected literal string; write a value, text in quotes",
        ),
        (
            "on = yes",
            "a.toml:1: string values must be quoted, expected literal string; write a value, text in quotes",
        ),
        (
            "number = \"1\"",
            "a.toml:1: invalid type: string \"1\", expected a whole number; write the number without quotes",
        ),
        (
            "number = 1.5",
            "a.toml:1: invalid type: floating point `1.5`, expected a whole number; write a whole number",
        ),
        (
            "number = 70000",
            "a.toml:1: invalid value: integer `70000`, expected a whole number; write a number within these bounds",
        ),
        ("number = 01", "a.toml:1: unexpected leading zero; write the number without the zero in front"),
        (
            "list = \"10.0.0.0/8\"",
            "a.toml:1: invalid type: string \"10.0.0.0/8\", expected a sequence; write a list in \
             brackets, such as [\"192.0.2.1\"]",
        ),
        (
            "list = [\"a\" \"b\"]",
            "a.toml:1: missing comma between array elements, expected `,`; write a comma between two values",
        ),
        (
            "list = [\"a\",, \"b\"]",
            "a.toml:1: extra comma in array, expected value; remove one of the commas",
        ),
        (
            "list = [\"a\"\ntext = \"b\"",
            "a.toml:2: missing comma between array elements, expected `,`; write a comma between two values",
        ),
        ("list = [1]", "a.toml:1: invalid type: integer `1`, expected a string; write the value in quotes"),
        ("text = 1", "a.toml:1: invalid type: integer `1`, expected a string; write the value in quotes"),
        (
            "text = \"a",
            "a.toml:1: invalid basic string, expected `\"`; end the text with a quotation mark, on the same line",
        ),
        ("text = 10.0.0.1", "a.toml:1: invalid float; write text in quotes, such as \"192.0.2.1\""),
        ("text == \"a\"", "a.toml:1: extra `=`; remove one of the two `=`"),
        (
            "text = \"a\" \"b\"",
            "a.toml:1: unexpected key or value, expected newline, `#`; begin a new line, or \
             remove what follows the value",
        ),
        ("path = 1", "a.toml:1: invalid type: integer `1`, expected path string; write the path in quotes"),
        ("[table\nname = \"a\"", "a.toml:1: unclosed table, expected `]`; end the table's name with `]`"),
        (
            "[[table]]\nname = \"a\"",
            "a.toml:1: invalid type: map, expected a string; write text in quotes, such as node = \"NAME\", or a \
             table's name in one bracket, such as [routing]",
        ),
        (
            "[tables]\nname = \"a\"",
            "a.toml:1: invalid type: map, expected a sequence; write the table's name in \
             two brackets, such as [[nodes]]",
        ),
        ("[[tables]]\n[[tables]]", "a.toml:1: missing field `name`; add it to this table"),
        (
            "[table]\nname = \"a\"\n[table]\nname = \"b\"",
            "a.toml:3: `table` is here for the second time; keep one of the two",
        ),
        (
            "[table]\nname: \"a\"",
            "a.toml:2: key with no value, expected `=`; write `= value` after it, with text in quotes",
        ),
        (
            "colour = 1",
            "a.toml:1: unknown field `colour`, expected one of `on`, `number`, `list`, `text`, `path`, \
             `table`, `tables`; remove it or fix its spelling",
        ),
        (
            "= 1",
            "a.toml:1: unquoted keys cannot be empty, expected letters, numbers, `-`, `_`; write \
             the key before the `=`",
        ),
    ];
    for (text, expected) in cases {
        let mistake = TomlFile::from_text(Path::new("a.toml"), text).parse::<File>().unwrap_err();
        assert_eq!(mistake.to_string(), expected, "{text}");
    }
}

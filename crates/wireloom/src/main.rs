//! The `wireloom` program: a thin shell over the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    wireloom::main()
}

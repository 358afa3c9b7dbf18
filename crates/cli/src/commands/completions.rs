//! `kanana completions`: shell completion scripts, made from the flags' definitions.

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::output;

/// Print a completion script for a shell.
#[derive(Args)]
#[command(after_help = "\
Examples:
  kanana completions bash > ~/.local/share/bash-completion/completions/kanana
  kanana completions zsh > ~/.zfunc/_kanana
  kanana completions fish > ~/.config/fish/completions/kanana.fish")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "kanana", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}

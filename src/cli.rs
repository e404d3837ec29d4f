//! Commands and flags. Help, completions and the man page are derived from the types here.

mod check;
mod docs;
mod health;
mod serve;

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use onehop::config::Source;

/// A bad configuration, or not healthy.
const BAD: u8 = 1;
/// The command line makes no sense; also clap's code.
const USAGE: u8 = 2;

/// API gateway and service-mesh sidecar in one process.
///
/// `onehop -c FILE` serves, as `onehop run -c FILE` does; `onehop -t -c FILE` checks.
#[derive(Parser)]
#[command(name = "onehop", version, args_conflicts_with_subcommands = true, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 good, 1 bad configuration or not healthy, 2 wrong usage.")]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// File or folder with configuration, `-` = standard input; may be repeated
    #[arg(short, long = "config", value_name = "FILE")]
    config: Vec<String>,
    /// Only check the configuration
    #[arg(short, long)]
    test: bool,
    #[command(flatten)]
    view: View,
}

#[derive(Subcommand)]
enum Command {
    /// Serve
    Run(Config),
    /// Validate a configuration and name every mistake
    Check {
        #[command(flatten)]
        config: Config,
        #[command(flatten)]
        view: View,
        /// As on the bare command
        #[arg(short, long, hide = true)]
        test: bool,
    },
    /// Start sample services, an edge chain and a sidecar chain, and show what they decide
    Demo {
        /// Exit after the tour
        #[arg(long)]
        once: bool,
    },
    /// Say what would become of a request: routes, filters, endpoints
    Explain {
        #[command(flatten)]
        config: Config,
        /// Method, such as GET
        method: http::Method,
        /// URL, such as `https://api.example.com/v1/orders`
        url: http::Uri,
        /// Header field, `name: value`; may be repeated
        #[arg(short = 'H', long = "header", value_name = "FIELD", value_parser = field)]
        headers: Vec<(http::HeaderName, http::HeaderValue)>,
    },
    /// List the filters, or describe one
    Filters {
        /// Key of a filter, such as `jwt`
        name: Option<String>,
    },
    /// Print the JSON Schema of the configuration
    Schema,
    /// Ask a running onehop if it is ready
    Health {
        /// Admin address: `ip:port` or `unix:///path`
        #[arg(long, value_name = "ADDR", conflicts_with = "config")]
        admin: Option<String>,
        /// Take the admin address from this configuration
        #[arg(short, long = "config", value_name = "FILE")]
        config: Vec<String>,
    },
    /// Print the completions of a shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
    /// Print the version
    Version,
}

#[derive(Args)]
struct Config {
    /// File or folder with configuration, `-` = standard input; may be repeated
    #[arg(short, long = "config", value_name = "FILE", required = true)]
    config: Vec<String>,
}

#[derive(Args)]
struct View {
    /// Print the whole configuration with defaults marked and secrets hidden
    #[arg(long)]
    effective: bool,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

/// Parses the command line and does what it says.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        None if cli.config.is_empty() => usage("pass a configuration with `-c FILE`"),
        None if cli.test => check::check(&sources(&cli.config), &cli.view),
        None if cli.view.effective || cli.view.format != Format::Text => {
            usage("`--effective` and `--format` belong to `onehop check`, or to `-t`")
        }
        None => serve::run(sources(&cli.config)),
        Some(Command::Run(config)) => serve::run(sources(&config.config)),
        Some(Command::Check { config, view, .. }) => check::check(&sources(&config.config), &view),
        Some(Command::Demo { once }) => serve::demo(once),
        Some(Command::Explain { config, method, url, headers }) => {
            serve::explain(&sources(&config.config), method, url, headers)
        }
        Some(Command::Filters { name }) => docs::filters(name.as_deref()),
        Some(Command::Schema) => docs::schema(),
        Some(Command::Health { admin, config }) => health::health(admin.as_deref(), &sources(&config)),
        Some(Command::Completion { shell }) => docs::completion(shell),
        Some(Command::Man) => docs::man(),
        Some(Command::Version) => print(&format!("onehop {}\n", env!("CARGO_PKG_VERSION"))),
    }
}

fn sources(args: &[String]) -> Vec<Source> {
    args.iter().map(|arg| Source::of(arg)).collect()
}

fn usage(message: &str) -> ExitCode {
    eprintln!("onehop: {message}\n\nFor more information, try 'onehop --help'.");
    ExitCode::from(USAGE)
}

/// To standard output. A reader that left early (`| head`) is no failure of ours.
fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    ExitCode::SUCCESS
}

/// `name: value`.
fn field(text: &str) -> Result<(http::HeaderName, http::HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write `name: value`")?;
    let name = name.trim().parse().map_err(|_| format!("`{name}` is not the name of a header field"))?;
    let value = value.trim().parse().map_err(|_| "this is not the value of a header field".to_owned())?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bare_flags_and_commands_are_both_understood() {
        for line in [
            "onehop -c a -c b",
            "onehop -t -c a",
            "onehop -t -c a --effective",
            "onehop run -c a",
            "onehop check -c - --format json",
            "onehop check -t -c a",
            "onehop demo --once",
            "onehop explain -c a GET http://h/p -H x-a:b",
            "onehop filters jwt",
            "onehop health --admin unix:///run/o.sock",
            "onehop completion bash",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in
            ["onehop", "onehop run", "onehop check", "onehop explain -c a GET", "onehop -x", "onehop completion"]
        {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}

//! The command line as a whole: what is understood, what is refused, and the help texts.

use super::*;

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn early(line: &str) -> (String, u8) {
    match read(&words(line)) {
        Err(Early::Help(text)) => (text, 0),
        Err(Early::Warned { text, code }) => (text, code),
        Ok(other) => panic!("{line}: {other:?}"),
    }
}

#[test]
fn help_of_secret() {
    let expected = "\
Usage:  skep secret COMMAND

Manage Swarm secrets

Commands:
  create      Create a secret from a file or STDIN as content
  inspect     Display detailed information on one or more secrets
  ls          List secrets
  rm          Remove one or more secrets

Beyond Docker:
  audit       Show who has read a secret, or all secrets and configs
  history     Show the versions of a secret
  prune       Remove versions of secrets that nothing uses
  revoke      Take a secret back from running tasks; exits with 2 if some cannot be reached
  rollback    Give a secret the bytes of an earlier version, as its next one
  update      Give one or more secrets a new version, which running tasks get at once

Run 'skep secret COMMAND --help' for more information on a command.
";
    assert_eq!(early("secret --help"), (expected.to_owned(), 0));
    assert_eq!(early("secret"), (expected.to_owned(), 0));
    assert_eq!(early("help secret"), (expected.to_owned(), 0));
}

#[test]
fn help_of_secret_create() {
    let expected = "\
Usage:  skep secret create [OPTIONS] SECRET [file|-]

Create a secret from a file or STDIN as content

Options:
  -d, --driver string            Secret driver
      --keep uint                Versions to keep, those in use aside
                                 (default 5)
  -l, --label list               Secret labels
      --template-driver string   Template driver
";
    assert_eq!(early("secret create --help"), (expected.to_owned(), 0));
}

#[test]
fn help_of_config_is_that_of_secret_in_its_words() {
    for verb in ["update", "history", "rollback", "prune"] {
        let (secret, config) =
            (early(&format!("secret {verb} --help")), early(&format!("config {verb} --help")));
        let expected = secret.0.replace("secret", "config").replace("SECRET", "CONFIG");
        assert_eq!(config, (expected, 0));
    }
    let expected = "\
Usage:  skep config prune [OPTIONS] [CONFIG...]

Remove versions of configs that nothing uses

Options:
      --dry-run     Only display what would be removed
  -f, --force       Do not prompt for confirmation
      --keep uint   Versions to leave of each (default: as many as each keeps)
";
    assert_eq!(early("config prune --help"), (expected.to_owned(), 0));
}

#[test]
fn help_of_rotate_key() {
    let expected = "\
Usage:  skep swarm rotate-key [OPTIONS]

Seal secrets and configs with a new key; unlock-key is about that of managers

Options:
  -d, --detach   Exit once the new key is current: the swarm goes on by itself
      --force    Make a new key even while the last rotation is not finished
  -q, --quiet    Suppress progress output, and only display the key's number
";
    assert_eq!(early("swarm rotate-key --help"), (expected.to_owned(), 0));
}

#[test]
fn long_usages_are_wrapped_as_in_docker() {
    let (text, _) = early("swarm leave --help");
    assert!(text.ends_with(
        "\nOptions:\n  -f, --force   Force this node to leave the swarm, ignoring warnings\n"
    ));
    let (text, _) = early("service create --help");
    assert!(
        text.contains(
            "      --config config                      Specify configurations to\n\
         \x20                                          expose to the service\n"
        ),
        "{text}"
    );
    let (text, _) = early("ps --help");
    assert!(
        text.contains("  -n, --last int        Show n last created containers (includes all\n")
    );
    assert!(text.contains(
        "Aliases:\n  skep container ls, skep container list, skep container ps, skep ps\n"
    ));
}

#[test]
fn every_command_has_help_in_its_shape() {
    fn visit(path: &str, commands: &[flags::Command]) {
        for command in commands {
            let path = format!("{path} {}", command.name);
            let text = help::command(&path, command, 80);
            assert!(text.starts_with(&format!("Usage:  {path} {}\n\n", command.usage)), "{path}");
            assert!(text.lines().all(|line| line.len() <= 100), "{path}");
            let names: Vec<&str> = command.flags.iter().map(|flag| flag.name).collect();
            assert!(names.is_sorted(), "{path}: {names:?}");
            assert_eq!(
                command.usage.contains("[OPTIONS]"),
                !command.flags.is_empty() && command.name != "scale" && command.name != "shim",
                "{path}"
            );
            if let flags::Action::Group(inner) = command.action {
                assert!(inner.is_sorted_by_key(|one| one.name), "{path}");
                visit(&path, inner);
            }
        }
    }
    visit("skep", commands::ROOT);
    assert!(root_help().contains("\nBeyond Docker:\n  up          Start a node;"));
}

#[test]
fn errors_and_exit_codes_are_dockers() {
    assert_eq!(
        early("--foo"),
        (
            "unknown flag: --foo\n\nUsage:  skep [OPTIONS] COMMAND [ARG...]\n\n\
             Run 'skep --help' for more information\n"
                .to_owned(),
            125
        )
    );
    assert_eq!(
        early("foo"),
        ("skep: unknown command: skep foo\n\nRun 'skep --help' for more information".to_owned(), 1)
    );
    assert_eq!(
        early("secret foo"),
        (
            "skep: unknown command: skep secret foo\n\nUsage:  skep secret\n\n\
             Run 'skep secret --help' for more information"
                .to_owned(),
            1
        )
    );
    assert_eq!(
        early("secret inspect"),
        (
            "skep: 'skep secret inspect' requires at least 1 argument\n\n\
             Usage:  skep secret inspect [OPTIONS] SECRET [SECRET...]\n\n\
             See 'skep secret inspect --help' for more information\n"
                .to_owned(),
            1
        )
    );
    assert_eq!(
        early("service create --secret foo=bar x"),
        (
            "invalid argument \"foo=bar\" for \"--secret\" flag: invalid field in secret request: \
             foo\n\nUsage:  skep service create [OPTIONS] IMAGE [COMMAND] [ARG...]\n\n\
             Run 'skep service create --help' for more information\n"
                .to_owned(),
            125
        )
    );
    assert_eq!(early("-H tcp://x ps").1, 125);
}

#[test]
fn calls_name_their_socket_and_forward_arguments() {
    let Ok(Cli::Client(call)) = read(&words("-H unix:///x.sock exec -it -u 5 abc sh -c --help"))
    else {
        panic!("not a call")
    };
    assert_eq!(call.socket, PathBuf::from("/x.sock"));
    assert_eq!(call.path, "skep exec");
    assert_eq!(call.args(), ["abc", "sh", "-c", "--help"]);
    assert!(call.on("interactive") && call.on("tty"));
}

#[test]
fn node_options() {
    let node = |line: &str| match read(&words(line)) {
        Ok(Cli::Node(args)) => args,
        other => panic!("{line}: {other:?}"),
    };
    let args = node("daemon");
    assert_eq!(args.start, Start::Daemon);
    assert_eq!(args.sockets, [PathBuf::from("/run/skep/skep.sock")]);
    assert_eq!(args.listen_addr.to_string(), "0.0.0.0:2377");
    let args = node(
        "up --run-root /tmp/r --data-root /tmp/d --listen-addr 127.0.0.1:0 --availability drain",
    );
    assert_eq!(args.start, Start::Up);
    assert_eq!(args.sockets, [PathBuf::from("/tmp/r/skep.sock")]);
    assert_eq!(args.availability, Availability::Drain);
    let args = node("-H unix:///a up -H /b -H unix:///a --join h1:1,h2 --token-file /t");
    assert_eq!(args.sockets, [PathBuf::from("/a"), PathBuf::from("/b")]);
    let join = args.join.unwrap();
    assert_eq!(join.managers, ["h1:1", "h2:2377"]);
    assert!(matches!(join.token, TokenSource::File(path) if path == std::path::Path::new("/t")));
    let args = node("up --join 192.0.2.7 --join [2001:db8::7]:9 --token SWMTKN-1-a-b");
    assert!(!format!("{args:?}").contains("SWMTKN"), "{args:?}");
    let join = args.join.unwrap();
    assert_eq!(join.managers, ["192.0.2.7:2377", "[2001:db8::7]:9"]);
    assert!(matches!(join.token, TokenSource::Given(token) if token.reveal() == "SWMTKN-1-a-b"));
    let join = node("up --join h --token-file -").join.unwrap();
    assert!(matches!(join.token, TokenSource::Stdin));
    for (line, why) in [
        ("up --join x", "--join needs --token or --token-file"),
        ("up --token t", "--token and --token-file need --join"),
        ("up --join , --token t", "--token and --token-file need --join"),
        ("up --join x --token t --token-file f", "exclude each other"),
        ("up --join x:0 --token t", "invalid address \"x:0\""),
        ("up --join x:y --token t", "invalid address \"x:y\""),
    ] {
        let (text, code) = early(line);
        assert_eq!(code, 125, "{line}: {text}");
        assert!(text.contains(why), "{line}: {text}");
    }
    assert_eq!(early("up --listen-addr nowhere").1, 125);
    assert_eq!(early("daemon --vault tin").1, 125);
    assert!(
        matches!(read(&words("shim --task /d")), Ok(Cli::Shim(dir)) if dir == std::path::Path::new("/d"))
    );
    assert_eq!(early("shim").1, 125);
}

//! `skep network`.

use serde_json::Value;

use super::call::Call;
use super::client::{Client, Target};
use super::error::CliError;
use super::flags::{Arity, Command, Flag};
use super::output::{FILTER, INSPECT_FORMAT, LIST_FORMAT, Layout, Row, print_list, row};
use super::{human, inspect, json};

/// `skep network …`
pub(super) const NETWORK: Command = Command::group(
    "network",
    "Manage networks",
    &[
        Command::client(
            "inspect",
            "[OPTIONS] NETWORK [NETWORK...]",
            "Display detailed information on one or more networks",
            inspect_networks,
        )
        .flags(&[
            INSPECT_FORMAT,
            Flag::switch("verbose", "Verbose output for diagnostics").short('v'),
        ])
        .takes(Arity::AtLeast(1)),
        Command::client("ls", "[OPTIONS]", "List networks", list)
            .flags(&[
                FILTER,
                LIST_FORMAT,
                Flag::switch("no-trunc", "Do not truncate the output"),
                Flag::switch("quiet", "Only display network IDs").short('q'),
            ])
            .takes(Arity::None)
            .aliases(&["list"], &["network ls", "network list"]),
    ],
)
.section("Management Commands");

const LAYOUT: Layout = Layout {
    table: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
    quiet: "{{.ID}}",
    headers: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("IPv4", "IPV4"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
};

fn list(call: &Call) -> Result<u8, CliError> {
    let answer = call.client()?.get_json(&Target::new(&["networks"]).filtered(&call.filters()))?;
    let mut networks: Vec<&Value> = json::list(&answer, &[]).iter().collect();
    networks.sort_by(|a, b| human::natural(json::text(a, &["Name"]), json::text(b, &["Name"])));
    let cut = !call.on("no-trunc");
    let rows: Vec<Row> = networks
        .into_iter()
        .map(|network| {
            let text = |key: &str| json::text(network, &[key]).to_owned();
            let id = text("Id");
            let truth = |key: &str| json::flag(network, &[key]).to_string();
            row([
                ("ID", if cut { human::short_id(&id).to_owned() } else { id }),
                ("Name", text("Name")),
                ("Driver", text("Driver")),
                ("Scope", text("Scope")),
                ("IPv4", truth("EnableIPv4")),
                ("IPv6", truth("EnableIPv6")),
                ("Internal", truth("Internal")),
                ("Labels", human::labels(json::at(network, &["Labels"]))),
                ("CreatedAt", inspect::go_time(&text("Created"))),
            ])
        })
        .collect();
    print_list(call, &LAYOUT, &rows)?;
    Ok(0)
}

fn inspect_networks(call: &Call) -> Result<u8, CliError> {
    let verbose = call.on("verbose");
    inspect::print(call, &mut call.client()?, |client: &mut Client, name| {
        let target = Target::new(&["networks", name]);
        client.get(&if verbose { target.with("verbose", "true") } else { target })
    })
}

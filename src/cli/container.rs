//! `skep ps` and `skep container`.

use serde_json::Value;

use super::call::Call;
use super::client::{Client, Target};
use super::error::CliError;
use super::flags::{Arity, Command, Flag};
use super::output::{FILTER, INSPECT_FORMAT, LIST_FORMAT, Layout, Row, print_list, row};
use super::values::check_int;
use super::{exec, human, inspect, json, logs};

/// Characters of a command in a table.
const COMMAND_CHARS: usize = 20;

/// `skep ps`
pub(super) const PS: Command = Command::client("ps", "[OPTIONS]", "List containers", list)
    .flags(FLAGS)
    .takes(Arity::None)
    .aliases(&[], ALSO)
    .section("Common Commands");

/// `skep container …`
pub(super) const CONTAINER: Command = Command::group(
    "container",
    "Manage containers",
    &[
        exec::EXEC.aliases(&[], &["container exec", "exec"]),
        Command::client(
            "inspect",
            "[OPTIONS] CONTAINER [CONTAINER...]",
            "Display detailed information on one or more containers",
            inspect_containers,
        )
        .flags(&[INSPECT_FORMAT, Flag::switch("size", "Display total file sizes").short('s')])
        .takes(Arity::AtLeast(1)),
        logs::LOGS.aliases(&[], &["container logs", "logs"]),
        Command::client("ls", "[OPTIONS]", "List containers", list)
            .flags(FLAGS)
            .takes(Arity::None)
            .aliases(&["list", "ps"], ALSO),
    ],
)
.section("Management Commands");

const ALSO: &[&str] = &["container ls", "container list", "container ps", "ps"];

const FLAGS: &[Flag] = &[
    Flag::switch("all", "Show all containers (default shows just running)").short('a'),
    FILTER,
    LIST_FORMAT,
    Flag::with("last", "int", "Show n last created containers (includes all states) (default -1)")
        .short('n')
        .check(check_int),
    Flag::switch("latest", "Show the latest created container (includes all states)").short('l'),
    Flag::switch("no-trunc", "Don't truncate output"),
    Flag::switch("quiet", "Only display container IDs").short('q'),
    Flag::switch("size", "Display total file sizes").short('s'),
];

const LAYOUT: Layout = Layout {
    table: "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}",
    quiet: "{{.ID}}",
    headers: &[
        ("ID", "CONTAINER ID"),
        ("Image", "IMAGE"),
        ("Command", "COMMAND"),
        ("CreatedAt", "CREATED AT"),
        ("RunningFor", "CREATED"),
        ("Status", "STATUS"),
        ("State", "STATE"),
        ("Ports", "PORTS"),
        ("Names", "NAMES"),
        ("Labels", "LABELS"),
        ("Mounts", "MOUNTS"),
        ("Networks", "NETWORKS"),
        ("LocalVolumes", "LOCAL VOLUMES"),
        ("Size", "SIZE"),
    ],
};

const SIZE_LAYOUT: Layout = Layout {
    table: "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t\
            {{.Names}}\t{{.Size}}",
    ..LAYOUT
};

fn list(call: &Call) -> Result<u8, CliError> {
    let last = if call.on("latest") { Some("1") } else { call.get("last") };
    let last = last.filter(|last| last.parse::<i64>().is_ok_and(|count| count > 0));
    let mut target = Target::new(&["containers", "json"]);
    if call.on("all") || last.is_some() {
        target = target.with("all", "1");
    }
    target = target.filtered(&call.filters()).with_some("limit", last);
    if call.on("size") {
        target = target.with("size", "1");
    }
    let answer = call.client()?.get_json(&target)?;
    let cut = !call.on("no-trunc");
    let rows: Vec<_> = json::list(&answer, &[]).iter().map(|one| container_row(one, cut)).collect();
    print_list(call, if call.on("size") { &SIZE_LAYOUT } else { &LAYOUT }, &rows)?;
    Ok(0)
}

fn container_row(container: &Value, cut: bool) -> Row {
    let text = |path: &[&str]| json::text(container, path).to_owned();
    let id = text(&["Id"]);
    let command = text(&["Command"]);
    let command = if cut { human::ellipsis(&command, COMMAND_CHARS) } else { command };
    let created = json::at(container, &["Created"]).and_then(Value::as_i64).unwrap_or_default();
    let at = jiff::Timestamp::from_second(created)
        .map(|at| at.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string());
    let names: Vec<&str> = json::list(container, &["Names"])
        .iter()
        .filter_map(Value::as_str)
        .map(|name| name.trim_start_matches('/'))
        .filter(|name| !cut || !name.contains('/'))
        .collect();
    let mounts: Vec<String> = json::list(container, &["Mounts"])
        .iter()
        .map(|mount| match json::text(mount, &["Name"]) {
            "" => json::text(mount, &["Source"]).to_owned(),
            name => name.to_owned(),
        })
        .map(|name| if cut { human::ellipsis(&name, 15) } else { name })
        .collect();
    let networks = json::at(container, &["NetworkSettings", "Networks"]).and_then(Value::as_object);
    let networks: Vec<&str> =
        networks.map(|map| map.keys().map(String::as_str).collect()).unwrap_or_default();
    let mut row = row([
        ("ID", if cut { human::short_id(&id).to_owned() } else { id }),
        ("Image", image_name(container, cut)),
        ("Command", format!("{command:?}")),
        ("CreatedAt", at.unwrap_or_default()),
        ("RunningFor", human::ago_unix(created)),
        ("Status", text(&["Status"])),
        ("State", text(&["State"])),
        ("Ports", ports(json::list(container, &["Ports"]))),
        ("Names", names.join(",")),
        ("Labels", human::labels(json::at(container, &["Labels"]))),
        ("Mounts", mounts.join(",")),
        ("Networks", networks.join(",")),
        ("LocalVolumes", "0".to_owned()),
        ("Size", size(container)),
    ]);
    row.insert("Platform".to_owned(), Value::Null);
    row
}

fn image_name(container: &Value, cut: bool) -> String {
    match json::text(container, &["Image"]) {
        "" => "<no image>".to_owned(),
        image if cut => {
            let id = json::text(container, &["ImageID"]);
            if image == id {
                human::short_id(image).to_owned()
            } else {
                human::familiar_image(image)
            }
        }
        image => image.to_owned(),
    }
}

fn size(container: &Value) -> String {
    let writable = human::size(json::number(container, &["SizeRw"]) as f64, 3);
    match json::number(container, &["SizeRootFs"]) {
        0 => writable,
        whole => format!("{writable} (virtual {})", human::size(whole as f64, 3)),
    }
}

fn ports(ports: &[Value]) -> String {
    let mut shown: Vec<(u64, u64, String)> = ports
        .iter()
        .map(|port| {
            let private = json::number(port, &["PrivatePort"]);
            let public = json::number(port, &["PublicPort"]);
            let protocol = json::text(port, &["Type"]);
            let text = match public {
                0 => format!("{private}/{protocol}"),
                _ => format!("{}:{public}->{private}/{protocol}", json::text(port, &["IP"])),
            };
            (private, public, text)
        })
        .collect();
    shown.sort();
    shown.into_iter().map(|(.., text)| text).collect::<Vec<_>>().join(", ")
}

fn inspect_containers(call: &Call) -> Result<u8, CliError> {
    let size = call.on("size");
    inspect::print(call, &mut call.client()?, |client: &mut Client, name| {
        let target = Target::new(&["containers", name, "json"]);
        client.get(&if size { target.with("size", "1") } else { target })
    })
}

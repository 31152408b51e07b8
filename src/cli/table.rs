//! Columns as Go's tabwriter sets them in the docker CLI: at least ten wide, three apart.

/// Narrowest column.
const MIN_WIDTH: usize = 10;
/// Space between columns.
const PADDING: usize = 3;

/// Sets lines whose cells are parted by tabs into columns; the last cell of a line is not
/// padded.
pub(super) fn columns(lines: &str) -> String {
    let rows: Vec<Vec<&str>> = lines.lines().map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate().take(row.len().saturating_sub(1)) {
            let width = cell.chars().count() + PADDING;
            match widths.get_mut(column) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width.max(MIN_WIDTH)),
            }
        }
    }
    let mut out = String::new();
    for row in &rows {
        let last = row.len().saturating_sub(1);
        for (column, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if column < last {
                let width = widths.get(column).copied().unwrap_or(MIN_WIDTH);
                let gap = width.saturating_sub(cell.chars().count());
                out.extend(std::iter::repeat_n(' ', gap));
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_ten_wide_and_three_apart() {
        let text = columns("ID\tNAME\tPORTS\nabc\ta-long-name\t\nd\té…\t80/tcp\n");
        assert_eq!(
            text,
            "ID        NAME          PORTS\n\
             abc       a-long-name   \n\
             d         é…            80/tcp\n"
        );
    }
}

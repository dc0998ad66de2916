/// A table for people: left-aligned text, right-aligned numbers, columns as wide as their widest cell.
struct TextTable {
    struct Column {
        var title: String
        var isNumber: Bool
    }

    private var columns: [Column]
    private var rows: [[String]] = []

    /// Titles ending in `#` are columns of numbers.
    init(_ titles: String...) {
        columns = titles.map { title in
            let isNumber = title.hasSuffix("#")
            return Column(title: isNumber ? String(title.dropLast()) : title, isNumber: isNumber)
        }
    }

    var isEmpty: Bool { rows.isEmpty }

    mutating func add(_ cells: String...) {
        precondition(
            cells.count == columns.count,
            "a row of \(cells.count) cells in a table of \(columns.count) columns")
        rows.append(cells)
    }

    /// Lines without blanks at their ends.
    var text: String {
        let all = [columns.map(\.title)] + rows
        let widths = columns.indices.map { column in all.map { $0[column].count }.max() ?? 0 }
        return all.map { row in
            var line = ""
            for (index, cell) in row.enumerated() {
                let fill = String(repeating: " ", count: widths[index] - cell.count)
                line += (index > 0 ? "  " : "") + (columns[index].isNumber ? fill + cell : cell + fill)
            }
            while line.hasSuffix(" ") { line.removeLast() }
            return line + "\n"
        }.joined()
    }
}

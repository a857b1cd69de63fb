package fault

// SQLite names the database/sql driver of files. Tests have one there that fails single statements (internal/sqlfault).
var SQLite = "sqlite3"

//! The tables that a query reads, and the columns that it passes on as they are, as far as its text says so. Pure. What cannot be
//! parsed reads nothing that is known: lineage is for people, and no run depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::thread;

use sqlparser::ast::{
    Expr, Ident, ObjectName, ObjectNamePart, Query, Select, SelectItem, SetExpr, Statement,
    TableFactor, Visit as _, Visitor,
};
use sqlparser::keywords::Keyword;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use super::dialect::Athena;

/// Athena's own catalog.
const CATALOG: &str = "AwsDataCatalog";

/// Tokens of a statement that is looked at, at most: the depth of what is parsed from a long chain of operators has no other bound.
const MAX_TOKENS: usize = 20_000;

/// Room for that depth.
const STACK: usize = 256 << 20;

/// Where names without a catalog or a database are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) catalog: Option<&'a str>,
    pub(super) database: &'a str,
}

/// What a query reads.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reads {
    /// `catalog.database.table` of each.
    pub(super) tables: BTreeSet<String>,
    /// The columns of the result that are a column of a table, unchanged: by the name in the result, the table and its column.
    pub(super) columns: BTreeMap<String, (String, String)>,
    /// Every column of the result is this table's column of the same name.
    pub(super) all_of: Option<String>,
}

impl Reads {
    /// What this SQL reads; nothing where that is not known.
    pub(super) fn of(sql: &str, place: Place<'_>) -> Self {
        // A deep statement needs a deep stack to be visited and dropped, which the thread of a runtime does not have.
        let read = thread::scope(|scope| {
            let thread = thread::Builder::new().stack_size(STACK);
            let read = thread.spawn_scoped(scope, || read(sql, place)).ok()?;
            read.join().ok()
        });
        read.unwrap_or_else(|| Err("no thread for it".to_owned()))
            .unwrap_or_else(|error| {
                tracing::debug!(error, "the SQL does not tell which tables it reads");
                Self::default()
            })
    }

    /// The table and its column that a column of the result is, unchanged.
    pub(super) fn origin(&self, column: &str) -> Option<(String, String)> {
        let column = column.to_lowercase();
        let origin = self.columns.get(&column).cloned();
        origin.or_else(|| Some((self.all_of.clone()?, column)))
    }
}

/// The error names no text of the statement, which may have a value that should not be logged.
fn read(sql: &str, place: Place<'_>) -> Result<Reads, String> {
    let unreadable = || "it cannot be parsed".to_owned();
    let tokens = Tokenizer::new(&Athena, sql).tokenize_with_location();
    let mut tokens = tokens.map_err(|_| unreadable())?;
    tokens.retain(|token| !matches!(token.token, Token::Whitespace(_)));
    if tokens.len() > MAX_TOKENS {
        return Err(format!("it has more than {MAX_TOKENS} words and signs"));
    }
    without_for(&mut tokens);
    let mut parser = Parser::new(&Athena).with_tokens_with_locations(tokens);
    let statements = parser.parse_statements().map_err(|_| unreadable())?;
    let [Statement::Query(query)] = statements.as_slice() else {
        return Err("it is not one query".to_owned());
    };
    let mut tables = Tables {
        place,
        found: BTreeSet::new(),
        scopes: Vec::new(),
    };
    let ControlFlow::Continue(()) = query.visit(&mut tables);
    let mut reads = Reads {
        tables: tables.found,
        ..Reads::default()
    };
    if let (None, SetExpr::Select(select)) = (&query.with, query.body.as_ref()) {
        reads.pass_on(select, place);
    }
    Ok(reads)
}

/// Makes `FOR TIMESTAMP AS OF` and `FOR VERSION AS OF` what the parser knows, which has them without the `FOR`.
fn without_for(tokens: &mut Vec<TokenWithSpan>) {
    let keyword = |token: &TokenWithSpan| match &token.token {
        Token::Word(word) => word.keyword,
        _ => Keyword::NoKeyword,
    };
    let words: Vec<_> = tokens.iter().map(keyword).collect();
    let is_version = |at: usize| {
        matches!(
            words.get(at..at + 4),
            Some([
                Keyword::FOR,
                Keyword::TIMESTAMP | Keyword::VERSION,
                Keyword::AS,
                Keyword::OF
            ])
        )
    };
    let mut at = 0..;
    tokens.retain(|_| !at.next().is_some_and(is_version));
}

/// Collects tables. A name that a `WITH` defines is none where that definition is in scope.
struct Tables<'a> {
    place: Place<'a>,
    found: BTreeSet<String>,
    scopes: Vec<Scope>,
}

/// The names that the `WITH` of one query defines.
struct Scope {
    /// Each with the place of its query in memory, by which the visit recognises it.
    names: Vec<(String, *const Query)>,
    is_recursive: bool,
    /// So many of them are in scope: inside of a definition, those before it.
    visible: usize,
}

impl Scope {
    fn of(query: &Query) -> Self {
        let with = query.with.as_ref();
        let tables = with.map_or(&[][..], |with| &with.cte_tables);
        let names = tables
            .iter()
            .map(|cte| (lower(&cte.alias.name), std::ptr::from_ref(&*cte.query)));
        Self {
            names: names.collect(),
            is_recursive: with.is_some_and(|with| with.recursive),
            visible: tables.len(),
        }
    }
}

impl Visitor for Tables<'_> {
    type Break = std::convert::Infallible;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Self::Break> {
        if let Some(outer) = self.scopes.last_mut()
            && let Some(at) = outer
                .names
                .iter()
                .position(|(_, definition)| std::ptr::eq(*definition, query))
        {
            outer.visible = at + usize::from(outer.is_recursive);
        }
        self.scopes.push(Scope::of(query));
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<Self::Break> {
        self.scopes.pop();
        if let Some(outer) = self.scopes.last_mut() {
            outer.visible = outer.names.len();
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Self::Break> {
        if let TableFactor::Table {
            name, args: None, ..
        } = factor
            && let Some(table) = table(name, self.place)
        {
            let defined = unqualified(name);
            let is_defined = self.scopes.iter().any(|scope| {
                let visible = &scope.names[..scope.visible];
                visible
                    .iter()
                    .any(|(name, _)| Some(name) == defined.as_ref())
            });
            if !is_defined {
                self.found.insert(table);
            }
        }
        ControlFlow::Continue(())
    }
}

/// A name in the form of OpenLineage for Athena, `catalog.database.table`.
fn table(name: &ObjectName, place: Place<'_>) -> Option<String> {
    let mut parts = name.0.iter().rev().map(ObjectNamePart::as_ident);
    // `"clicks$partitions"` is about the table clicks.
    let table = lower(parts.next()??);
    let table = table.split_once('$').map_or(table.as_str(), |(of, _)| of);
    let database = parts.next().flatten().map(lower);
    let database = database.unwrap_or_else(|| place.database.to_lowercase());
    let catalog = parts.next().flatten().map(|name| name.value.clone());
    let catalog = catalog.or_else(|| place.catalog.map(str::to_owned));
    let catalog = catalog.filter(|name| !name.eq_ignore_ascii_case(CATALOG));
    let catalog = catalog.as_deref().unwrap_or(CATALOG);
    Some(format!("{catalog}.{database}.{table}"))
}

/// The name of what a `WITH` may define.
fn unqualified(name: &ObjectName) -> Option<String> {
    match name.0.as_slice() {
        [only] => only.as_ident().map(lower),
        _ => None,
    }
}

/// Athena's names are the same in upper and lower case.
fn lower(name: &Ident) -> String {
    name.value.to_lowercase()
}

impl Reads {
    /// Notes the columns of a `SELECT` of tables alone that are columns of them. Those of a union, of a `WITH` or of a subquery
    /// are not followed.
    fn pass_on(&mut self, select: &Select, place: Place<'_>) {
        let sources = sources(select, place);
        let only = match sources.as_slice() {
            [(_, Some(table))] => Some(table),
            _ => None,
        };
        if let [SelectItem::Wildcard(_)] = select.projection.as_slice() {
            self.all_of = only.cloned();
        }
        for item in &select.projection {
            let (expression, alias) = match item {
                SelectItem::UnnamedExpr(expression) => (expression, None),
                SelectItem::ExprWithAlias { expr, alias } => (expr, Some(alias)),
                _ => continue,
            };
            let (table, column) = match expression {
                Expr::Identifier(column) => (only, column),
                Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                    [of, column] => (of_alias(&sources, &lower(of)), column),
                    _ => continue,
                },
                _ => continue,
            };
            if let Some(table) = table {
                let origin = (table.clone(), lower(column));
                self.columns.insert(lower(alias.unwrap_or(column)), origin);
            }
        }
    }
}

/// What a `SELECT` is from: the name in it, and the table unless it is something else.
fn sources(select: &Select, place: Place<'_>) -> Vec<(String, Option<String>)> {
    let joined = select.from.iter().flat_map(|from| {
        let joins = from.joins.iter().map(|join| &join.relation);
        std::iter::once(&from.relation).chain(joins)
    });
    let named = joined.map(|factor| match factor {
        TableFactor::Table {
            name,
            alias,
            args: None,
            ..
        } => {
            let named = alias.as_ref().map(|alias| lower(&alias.name));
            let last = name.0.last().and_then(ObjectNamePart::as_ident).map(lower);
            (named.or(last).unwrap_or_default(), table(name, place))
        }
        _ => (String::new(), None),
    });
    named.collect()
}

fn of_alias<'a>(sources: &'a [(String, Option<String>)], alias: &str) -> Option<&'a String> {
    let (_, table) = sources.iter().find(|(name, _)| name == alias)?;
    table.as_ref()
}

#[cfg(test)]
mod tests;

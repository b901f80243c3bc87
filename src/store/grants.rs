//! What the daemon's role may do: everything with rows, nothing with tables.
//!
//! Invariant: whoever may change the schema is somebody else; what cannot be held to that is refused, not half granted.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{Store, StoreError};

/// Why a role was not given what a daemon needs. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// It does not exist.
    #[error("there is no role {0}: create it first, with `create role {0} login password '...'`")]
    Unknown(String),
    /// Grants do not limit it.
    #[error(
        "the role {role} {why}, so no grant would limit it: let another role carry mail, and keep this one for \
         `postrider migrate`"
    )]
    Unlimited {
        /// The role.
        role: String,
        /// Why.
        why: &'static str,
    },
    /// The schema lets everybody create in it, and we may not change that.
    #[error(
        "the role {role} could still create tables: let the owner of the schema or a superuser run `revoke create on schema \
         {schema} from public`, and repeat this"
    )]
    MayCreate {
        /// The role.
        role: String,
        /// The schema.
        schema: String,
    },
    /// The database refuses, or is away.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for GrantError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What must be known of a role beforehand; names are quoted by the server.
#[derive(sqlx::FromRow)]
struct Grantee {
    role: String,
    schema: String,
    database: String,
    is_superuser: bool,
    is_owner: bool,
}

const GRANTEE: &str = "select quote_ident(rolname) as role, quote_ident(current_schema()) as schema, \
    quote_ident(current_database()) as database, \
    exists (select from pg_roles as super where super.rolsuper and pg_has_role(pg_roles.oid, super.oid, 'member')) \
        as is_superuser, \
    rolname = current_user or exists (select from pg_class \
        where relnamespace = current_schema()::regnamespace and relkind in ('r', 'p') \
        and pg_has_role(pg_roles.oid, relowner, 'member')) as is_owner \
    from pg_roles where rolname = $1";

impl Store {
    /// Whether our own role could change the schema, which carrying mail never needs.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn may_change_schema(&self) -> Result<bool, StoreError> {
        let owns = "select exists (select from pg_class where relnamespace = current_schema()::regnamespace \
            and relname = 'email_messages' and pg_has_role(relowner, 'member'))";
        Ok(sqlx::query_scalar(owns).fetch_one(&self.pool).await?)
    }

    /// Lets a role read and write the rows of every table that there is, and of those that later migrations of this same
    /// owner bring. It may not change, empty or drop a table, nor create one; what was applied it can only read.
    ///
    /// # Errors
    /// When there is no such role, or it could do more whatever is granted.
    pub async fn grant_to(&self, role: &str) -> Result<(), GrantError> {
        let mut connection = PgConnection::connect_with(&self.pool.connect_options()).await?;
        let grantee: Option<Grantee> = sqlx::query_as(GRANTEE).bind(role).fetch_optional(&mut connection).await?;
        let Some(Grantee { role: to, schema, database, is_superuser, is_owner }) = grantee else {
            return Err(GrantError::Unknown(role.to_owned()));
        };
        let unlimited = |why| Err(GrantError::Unlimited { role: role.to_owned(), why });
        if is_superuser {
            return unlimited("is a superuser, or may act as one");
        }
        if is_owner {
            return unlimited("owns tables of postrider, or may act as their owner");
        }
        let mut transaction = connection.begin().await?;
        for statement in [
            format!("grant connect on database {database} to {to}"),
            // What a role had before, say as a table's former owner, goes.
            format!("revoke all on all tables in schema {schema} from {to}"),
            format!("revoke all on all sequences in schema {schema} from {to}"),
            format!("revoke all on schema {schema} from {to}"),
            format!("grant usage on schema {schema} to {to}"),
            format!("grant select, insert, update, delete on all tables in schema {schema} to {to}"),
            format!("grant usage, select on all sequences in schema {schema} to {to}"),
            format!("grant execute on all functions in schema {schema} to {to}"),
            format!("revoke insert, update, delete on {schema}._sqlx_migrations from {to}"),
            format!(
                "alter default privileges in schema {schema} grant select, insert, update, delete on tables to {to}"
            ),
            format!("alter default privileges in schema {schema} grant usage, select on sequences to {to}"),
            format!("alter default privileges in schema {schema} grant execute on functions to {to}"),
            // Before PostgreSQL 15 everybody may create there. Where it is not ours to revoke, this only warns.
            format!("revoke create on schema {schema} from public"),
        ] {
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
        }
        let may_create: bool = sqlx::query_scalar("select has_schema_privilege($1, current_schema(), 'create')")
            .bind(role)
            .fetch_one(&mut *transaction)
            .await?;
        if may_create {
            return Err(GrantError::MayCreate { role: role.to_owned(), schema });
        }
        transaction.commit().await?;
        Ok(())
    }
}

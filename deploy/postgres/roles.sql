-- The daemon's role, for compose.yaml; run once, when the database is made. It owns nothing: `postrider migrate --grant-to
-- postrider`, as the owner of the tables, lets it read and write rows. Elsewhere the same, with a password of your own.
create role postrider login password 'postrider' nosuperuser nocreatedb nocreaterole noreplication nobypassrls;

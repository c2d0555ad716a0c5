-- A role for each part of the system that uses PostgreSQL, with no more than it needs:
--
--   etl_migrate   owns the ledger, the schemas etl and etl_staging: loader migrate
--   etl_loader    writes the ledger and the targets: the loaders
--   etl_command   reads the ledger, and writes requests and decisions to it: etl
--   etl_console   reads the ledger
--
-- Run it with psql as the owner of the database of the targets, who may create roles (on RDS the master user); a second time
-- changes nothing. SCHEMA is that of the targets, public if you leave it out; run it once for each.
--
--   psql "$ADMIN_URL" -v schema=SCHEMA -f deploy/postgres/roles.sql
--
-- Give each role its way to log in (\password etl_loader, or GRANT rds_iam TO etl_loader). Then, as etl_migrate, now and with each
-- new version:
--
--   loader migrate --loader-role etl_loader --command-role etl_command --console-role etl_console
--
-- gives them their privileges on the ledger. docs/operations.md, "A role with few privileges", has more.
\set ON_ERROR_STOP on
\if :{?schema}
\else
    \set schema public
\endif

SELECT format('CREATE ROLE %I LOGIN', name)
FROM unnest(ARRAY['etl_migrate', 'etl_loader', 'etl_command', 'etl_console']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

GRANT CONNECT ON DATABASE :"DBNAME" TO etl_migrate, etl_loader, etl_command, etl_console;
-- To create the two schemas of the ledger; a later migration asks for it again.
GRANT CREATE ON DATABASE :"DBNAME" TO etl_migrate;
-- For the temporary table by which modes with a key merge a batch.
GRANT TEMPORARY ON DATABASE :"DBNAME" TO etl_loader;
-- CREATE is for targets that a job creates. An existing table needs grants of its own, which etl plan names.
GRANT USAGE, CREATE ON SCHEMA :"schema" TO etl_loader;
-- etl looks at the definition of a target, never into it.
GRANT USAGE ON SCHEMA :"schema" TO etl_command;

-- PostgreSQL only warns of a grant that had no effect, since the role that made it may not give the privilege.
SELECT has_database_privilege('etl_migrate', current_database(), 'CREATE')
    AND has_schema_privilege('etl_loader', :'schema', 'CREATE') AS is_done \gset
\if :is_done
\else
    DO $$ BEGIN RAISE EXCEPTION 'some grants had no effect; run this as the owner of the database and of the schema'; END $$;
\endif

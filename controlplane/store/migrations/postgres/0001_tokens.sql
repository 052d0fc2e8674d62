CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION '%', TG_ARGV[0]; END $$;
CREATE TRIGGER audit_keeps_rows BEFORE DELETE OR UPDATE ON audit
FOR EACH ROW EXECUTE FUNCTION refuse('audit is append-only');
CREATE TRIGGER audit_keeps_all BEFORE TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION refuse('audit is append-only');
CREATE TRIGGER tokens_stay BEFORE DELETE ON tokens
FOR EACH ROW EXECUTE FUNCTION refuse('tokens are never deleted');
CREATE TRIGGER revoked_is_final BEFORE UPDATE OF status ON tokens
FOR EACH ROW WHEN (OLD.status = 'revoked' AND NEW.status <> 'revoked')
EXECUTE FUNCTION refuse('a revoked token stays revoked');

-- Whoever moves money locks its one row first.
CREATE TABLE turns (
  name  TEXT PRIMARY KEY,
  taken BIGINT NOT NULL
);
INSERT INTO turns (name, taken) VALUES ('leases', 0);

package abac

// The reasons, in the order in which the checks run.
const (
	ProfileInvalid Reason = iota // the zero value, so that an empty Decision denies
	TokenRevoked                 // revoked or quarantined
	TokenNotYetValid
	TokenExpired
	TokenUnknown // of another org: it does not exist here
	PurposeNotAllowed
	GatewayMismatch
	TeamMismatch
	ModelNotAllowed
	ModelNotFound // granted, but no entry serves it
	ProviderNotAllowed
	Allowed
)

var reasons = [...]string{
	ProfileInvalid:     "profile_invalid",
	TokenRevoked:       "token_revoked",
	TokenNotYetValid:   "token_not_yet_valid",
	TokenExpired:       "token_expired",
	TokenUnknown:       "invalid_api_key",
	PurposeNotAllowed:  "purpose_not_allowed",
	GatewayMismatch:    "gateway_mismatch",
	TeamMismatch:       "team_mismatch",
	ModelNotAllowed:    "model_not_allowed",
	ModelNotFound:      "model_not_found",
	ProviderNotAllowed: "provider_not_allowed",
	Allowed:            "allowed",
}

// String gives the code that the error table uses.
func (r Reason) String() string {
	if int(r) < len(reasons) {
		return reasons[r]
	}
	return reasons[ProfileInvalid]
}

package simulator

import (
	"fmt"
	"net/http"
)

// problem is an error as the provider writes it. Empty param and code are null.
type problem struct {
	status  int
	Message string
	Type    string
	Param   string
	Code    string
}

func (p problem) object() map[string]any {
	type inner struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    *string `json:"code"`
	}
	e := inner{Message: p.Message, Type: p.Type}
	if p.Param != "" {
		e.Param = &p.Param
	}
	if p.Code != "" {
		e.Code = &p.Code
	}
	return map[string]any{"error": e}
}

func (x *exchange) fail(p problem) { x.json(p.status, p.object(), "    ") }

func invalid(param, code, format string, args ...any) *problem {
	return &problem{
		status:  http.StatusBadRequest,
		Message: fmt.Sprintf(format, args...),
		Type:    "invalid_request_error",
		Param:   param,
		Code:    code,
	}
}

func unknownModel(id string) problem {
	return problem{
		status:  http.StatusNotFound,
		Message: fmt.Sprintf("The model `%s` does not exist or you do not have access to it.", id),
		Type:    "invalid_request_error",
		Code:    "model_not_found",
	}
}

// scripted is the error that goes with a status asked for by a script.
func scripted(status int, model string) problem {
	p := problem{status: status, Type: "invalid_request_error", Message: fmt.Sprintf("The simulator was asked for status %d.", status)}
	switch status {
	case http.StatusUnauthorized:
		p.Message = "Incorrect API key provided: sk-s****ator. You can find your API key at https://platform.openai.com/account/api-keys."
		p.Code = "invalid_api_key"
	case http.StatusForbidden:
		p.Message = fmt.Sprintf("Project `proj_simulator` does not have access to model `%s`", model)
		p.Code = "model_not_found"
	case http.StatusNotFound:
		p = unknownModel(model)
	case http.StatusTooManyRequests:
		p.Message = fmt.Sprintf("Rate limit reached for %s in organization org-simulator on requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 1s.", model)
		p.Type, p.Code = "requests", "rate_limit_exceeded"
	case http.StatusInternalServerError:
		p.Message = "The server had an error while processing your request. Sorry about that!"
		p.Type = "server_error"
	case http.StatusServiceUnavailable:
		p.Message = "The engine is currently overloaded, please try again later"
		p.Type = "server_error"
	default:
		if status >= 500 {
			p.Type = "server_error"
		}
	}
	return p
}

package main

import (
	"bytes"
	"net"
	"time"

	"github.com/valyala/fasthttp"
)

// bare is the proxy to beat: what one writes with fasthttp in an afternoon. It
// sets the provider's credential, passes streams as they come, and does nothing
// else: no authentication, no limits, no metrics, no log.
func bare(ln net.Listener, upstream string) error {
	host := func(stream bool) *fasthttp.HostClient {
		return &fasthttp.HostClient{
			Addr:                          upstream,
			MaxConns:                      16384,
			MaxIdleConnDuration:           time.Minute,
			StreamResponseBody:            stream,
			NoDefaultUserAgentHeader:      true,
			DisableHeaderNamesNormalizing: true,
			DisablePathNormalizing:        true,
		}
	}
	whole, streamed := host(false), host(true)
	server := &fasthttp.Server{
		NoDefaultServerHeader:         true,
		NoDefaultDate:                 true,
		DisableHeaderNamesNormalizing: true,
		Concurrency:                   16384,
		Handler: func(ctx *fasthttp.RequestCtx) {
			req, res := &ctx.Request, &ctx.Response
			req.Header.Del("Connection")
			req.Header.Set("Authorization", "Bearer "+providerKey)
			client := whole
			if bytes.Contains(req.Body(), []byte(`"stream":true`)) {
				client = streamed
			}
			if err := client.Do(req, res); err != nil {
				res.Reset()
				res.SetStatusCode(fasthttp.StatusBadGateway)
				res.SetBodyString(err.Error())
				return
			}
			res.Header.Del("Connection")
			if client == streamed {
				res.ImmediateHeaderFlush = true
			}
		},
	}
	return server.Serve(ln)
}
